"""Makes our attention for CPUs one of SGLang's attention backends, and layered mode's default there.

Upstream: srt/layers/attention/attention_registry.py; srt/server_args.py `ServerArgs._handle_cpu_backends`;
srt/arg_groups/overrides.py `_attention_backend_platform_fallbacks`, `register_model_override`. Runs in every
process that imports SGLang's flags, so the backend itself is imported only when a server is made with it.
"""

from functools import wraps
from typing import Any

from sglang_layered.errors import UnsupportedError

CPU_ATTENTION = "cpu_paged"
# SGLang asks these for one of three names; they have no default.
ASK_FOR_A_NAME = ("Exaone4ForCausalLM", "ExaoneMoEForCausalLM")


def offer_cpu_attention(server_args_class: Any) -> None:
    """Let `--attention-backend` name it, and layered mode take it where SGLang would take `torch_native`.

    Up to where SGLang would fall back to `torch_native` it resolves the flags of such a server as if none was
    given: many families accept a few of its names only, and none is accepted by all of them.
    """
    from sglang.srt.arg_groups import overrides
    from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS
    from sglang.srt.server_args import ATTENTION_BACKEND_CHOICES, add_attention_backend_choices

    if CPU_ATTENTION not in ATTENTION_BACKEND_CHOICES:
        add_attention_backend_choices([CPU_ATTENTION])
    ATTENTION_BACKENDS[CPU_ATTENTION] = _make
    choose, fall_back = (
        server_args_class._handle_cpu_backends,
        overrides._attention_backend_platform_fallbacks,
    )

    @wraps(choose)
    def choose_ours(self: Any) -> None:
        self._takes_cpu_attention = self.device == "cpu" and _is_wanted(self)
        choose(self)
        if self._takes_cpu_attention:
            self.attention_backend = None

    @wraps(fall_back)
    def fall_back_to_ours(view: Any) -> dict[str, Any]:
        return {"attention_backend": CPU_ATTENTION} if _takes_ours(view) else fall_back(view)

    server_args_class._handle_cpu_backends = choose_ours
    overrides._attention_backend_platform_fallbacks = fall_back_to_ours
    for architecture in ASK_FOR_A_NAME:
        overrides.register_model_override(architecture)(
            lambda args, config: {"attention_backend": "triton"} if _takes_ours(args) else {}
        )


def _takes_ours(server_args: Any) -> bool:
    return getattr(server_args, "_takes_cpu_attention", False)


def _is_wanted(server_args: Any) -> bool:
    from sglang.srt.utils import cpu_has_amx_support

    if server_args.attention_backend == CPU_ATTENTION:
        return True
    is_free = server_args.is_attention_backend_not_set()
    return server_args.prefill_mode == "layered" and is_free and not cpu_has_amx_support()


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


def _make(model_runner: Any) -> Any:
    from sglang_layered.upstream.cpu_attention import CpuAttention
    from sglang_layered.upstream.cpu_experts import take_experts

    if model_runner.server_args.speculative_algorithm is not None:
        from sglang_layered.upstream.cpu_drafts import take_drafts

        take_drafts()
    take_experts(model_runner.model)
    return CpuAttention(model_runner)
