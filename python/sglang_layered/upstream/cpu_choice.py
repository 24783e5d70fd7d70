"""Makes our attention for CPUs one of SGLang's attention backends, and layered mode's default there.

Upstream: srt/layers/attention/attention_registry.py; srt/arg_groups/overrides.py `register_model_override`.
Runs in every process that imports SGLang's flags, so the backend itself is imported only when a server is
made with it.
"""

from typing import Any

from sglang_layered.errors import UnsupportedError
from sglang_layered.upstream.releases import arguments

CPU_ATTENTION = "cpu_paged"
TAKES_OURS = "_takes_cpu_attention"  # an attribute of ours on the arguments, which travels to every process
# SGLang asks these for one of three names; they have no default.
ASK_FOR_A_NAME = ("Exaone4ForCausalLM", "ExaoneMoEForCausalLM", "ExaoneMoeForCausalLM")


def offer_cpu_attention(flags_class: Any) -> None:
    """Let `--attention-backend` name it, and layered mode take it where SGLang would take `torch_native`."""
    arguments.take_attention_on_cpus(flags_class, CPU_ATTENTION, _begin, _takes_ours)
    for architecture in ASK_FOR_A_NAME:
        arguments.register_model_override(architecture)(
            lambda args, config: {"attention_backend": "triton"} if _takes_ours(args) else {}
        )


def register_cpu_attention() -> None:
    """Let SGLang make it, in the process that runs the model."""
    from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS

    ATTENTION_BACKENDS[CPU_ATTENTION] = _make


def _begin(server_args: Any) -> bool:
    """Say, before SGLang looks at attention backends, whether these arguments take ours."""
    takes = arguments.resolved(server_args).device == "cpu" and _is_wanted(server_args)
    setattr(server_args, TAKES_OURS, takes)
    return takes


def _takes_ours(server_args: Any) -> bool:
    return getattr(server_args, TAKES_OURS, False)


def _is_wanted(server_args: Any) -> bool:
    from sglang.srt.utils import cpu_has_amx_support

    if server_args.attention_backend == CPU_ATTENTION:
        return True
    is_free = arguments.no_attention_backend_given(server_args)
    return server_args.prefill_mode == "layered" and is_free and not cpu_has_amx_support()


def check_cpu_attention(server_args: Any) -> None:
    """Refuse it, in any mode, where it was asked for and cannot serve.

    Raises:
        UnsupportedError: with the flag, the reason and the remedy.
    """
    if CPU_ATTENTION not in arguments.attention_backends_of(server_args):
        return
    asked = f"--attention-backend {CPU_ATTENTION}"
    if server_args.device != "cpu":
        raise UnsupportedError(
            f"{asked}: it computes on a CPU and the device is {server_args.device}; leave the flag out"
        )


def _make(model_runner: Any) -> Any:
    from sglang_layered.upstream.cpu_attention import CpuAttention
    from sglang_layered.upstream.cpu_experts import take_experts

    if arguments.resolved(model_runner.server_args).speculative_algorithm is not None:
        from sglang_layered.upstream.cpu_drafts import take_drafts

        take_drafts()
    take_experts(model_runner.model)
    return CpuAttention(model_runner)
