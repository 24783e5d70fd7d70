"""Makes our attention for CPUs one of SGLang's attention backends, and layered mode's default there.

Upstream: srt/layers/attention/attention_registry.py; srt/server_args.py `ATTENTION_BACKEND_CHOICES`,
`ServerArgs._handle_cpu_backends`. Read in every process that imports SGLang's flags, so the backend itself is
imported only when a server is made with it.
"""

from typing import Any

from sglang_layered.errors import UnsupportedError

CPU_ATTENTION = "cpu_paged"


def offer_cpu_attention(server_args_class: Any) -> None:
    """Let `--attention-backend` name it, and layered mode take it where SGLang would take `torch_native`."""
    from sglang.srt import server_args
    from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS

    if CPU_ATTENTION not in server_args.ATTENTION_BACKEND_CHOICES:
        server_args.add_attention_backend_choices([CPU_ATTENTION])
    ATTENTION_BACKENDS[CPU_ATTENTION] = _make
    stock = server_args_class._handle_cpu_backends

    def choose(self: Any) -> None:
        if self.prefill_mode == "layered" and self.device == "cpu" and self.is_attention_backend_not_set():
            if not _has_native_kernels():
                self.attention_backend = CPU_ATTENTION
        stock(self)

    server_args_class._handle_cpu_backends = choose


def check_cpu_attention(server_args: Any) -> None:
    """Refuse it, in any mode, where it was asked for and cannot serve.

    Raises:
        UnsupportedError: with the flag, the reason and the remedy.
    """
    if CPU_ATTENTION not in server_args.get_attention_backends():
        return
    asked = f"--attention-backend {CPU_ATTENTION}"
    if server_args.device != "cpu":
        raise UnsupportedError(
            f"{asked}: it computes on a CPU and the device is {server_args.device}; leave the flag out"
        )
    if server_args.speculative_algorithm is not None:
        raise UnsupportedError(
            f"{asked}: it attends for prompts and for single tokens, and --speculative-algorithm has several"
            " tokens of a draft verified at once; leave one of the two out"
        )


def _has_native_kernels() -> bool:
    from sglang.srt.utils import cpu_has_amx_support

    return bool(cpu_has_amx_support())


def _make(model_runner: Any) -> Any:
    from sglang_layered.upstream.cpu_attention import CpuAttention

    return CpuAttention(model_runner)
