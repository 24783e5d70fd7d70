"""What suits this machine: in which data type the demo model is fastest, and how long the prompts are."""

from __future__ import annotations

from dataclasses import dataclass

import psutil  # type: ignore[import-untyped]

from sglang_layered.cpu_kernels import cuda_driver_available
from sglang_layered_lab.quickstart import SIZES

BFLOAT16, FLOAT32 = "bfloat16", "float32"
FLOAT32_GIB = 12.0  # free memory that a float32 server of the demo model is given


@dataclass(frozen=True, slots=True)
class Machine:
    """What the choice depends on."""

    has_gpu: bool
    has_bfloat16: bool  # PyTorch's matrix products in bfloat16 go to oneDNN on this CPU
    free_gib: float

    @classmethod
    def here(cls) -> Machine:
        """Look at this one."""
        import torch  # takes seconds

        return cls(
            cuda_driver_available(),
            bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()),
            psutil.virtual_memory().available / 2**30,
        )


def size_for(machine: Machine) -> tuple[str, str | None]:
    """How long the prompts are (a key of `SIZES`), and why they are not the usual ones."""
    if machine.has_gpu or machine.has_bfloat16:
        return "full", None
    return (
        "half",
        f"a prompt of {SIZES['half']} tokens, for this CPU is slow; --size full takes one of {SIZES['full']}",
    )


def fastest(machine: Machine) -> tuple[str, str | None]:
    """The data type, and why it is not the usual one or why it is slow; None where it is as usual."""
    if machine.has_gpu or machine.has_bfloat16:
        return BFLOAT16, None
    if machine.free_gib >= FLOAT32_GIB:
        return FLOAT32, "this CPU has no bfloat16 products; in float32 it is several times faster"
    return BFLOAT16, (
        f"this CPU has no bfloat16 products and float32 needs {FLOAT32_GIB:.0f} GiB of free memory,"
        f" {machine.free_gib:.1f} GiB are there: slow"
    )
