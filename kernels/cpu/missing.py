"""What a name that is not implemented becomes.

SGLang imports the `_cpu` functions of every feature when it starts, and few of them are called; and it
detects features of other devices by `from sgl_kernel import name` with `except ImportError`. So `_cpu` names
exist and fail when called, and all other names do not exist.
"""

from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from sglang_layered.errors import CpuKernelError

# srt/models/qwen3_5.py takes these from `torch.ops.sgl_kernel` when it is imported, and the processors of all
# Qwen models with an encoder import it: without them no server of such a model starts.
TAKEN_AT_IMPORT = (
    "fused_sigmoid_mul_cpu",
    "fused_qk_gemma_rmsnorm_cpu",
    "fused_qk_gemma_rmsnorm_with_gate_cpu",
    "fused_qkvzba_split_reshape_cat_contiguous_cpu",
)


def missing_operators(
    names: Iterable[str] = TAKEN_AT_IMPORT,
) -> dict[str, Callable[..., NoReturn]]:
    """Stand-ins in `torch.ops.sgl_kernel`, as plain attributes: no operator is registered."""
    return {name: resolve_missing("torch.ops.sgl_kernel", name) for name in names}


def resolve_missing(module: str, name: str) -> Callable[..., NoReturn]:
    """Return a function that fails when called, or raise AttributeError unless the name ends in `_cpu`."""
    if not name.endswith("_cpu") or name.startswith("__"):
        raise AttributeError(
            f"module {module!r} has no {name!r}: without a CUDA driver it has CPU functions only"
        )
    op = f"{module}.{name}"

    def missing(*args: Any, **kwargs: Any) -> NoReturn:
        raise CpuKernelError(
            f"{op} was called, and there is no CPU reference of it. Turn off the feature that needs it "
            "(an encoder, quantized weights), use a CUDA machine, or add the function to kernels/cpu"
        )

    missing.__name__ = missing.__qualname__ = name
    return missing
