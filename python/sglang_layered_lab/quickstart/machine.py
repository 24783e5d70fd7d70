"""What suits this machine: in which data type the demo model is fastest, and how long the prompts are."""

from typing import NamedTuple

import psutil  # type: ignore[import-untyped]

from sglang_layered.upstream.cpu_kernels import cuda_driver_available
from sglang_layered_lab.quickstart import SIZES

BFLOAT16, FLOAT32 = "bfloat16", "float32"
FLOAT32_GIB = 12.0  # free memory that a float32 server of the demo model is given
SLOW = "this CPU has no bfloat16 products"


class Machine(NamedTuple):
    """What the choice depends on."""

    is_fast: bool  # a GPU, or a CPU on which PyTorch's products in bfloat16 go to oneDNN
    free_gib: float

    @classmethod
    def here(cls) -> "Machine":
        """Look at this one."""
        import torch  # takes seconds

        has_bfloat16 = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
        return cls(cuda_driver_available() or has_bfloat16, psutil.virtual_memory().available / 2**30)


def size_for(machine: Machine) -> tuple[str, str]:
    """How long the prompts are (a key of `SIZES`), and why they are not the usual ones; empty if they are."""
    if machine.is_fast:
        return "full", ""
    tokens = f"a prompt of {SIZES['half']} tokens, for this CPU is slow"
    return "half", f"{tokens}; --size full takes one of {SIZES['full']}"


def fastest(machine: Machine) -> tuple[str, str]:
    """The data type, and why it is not the usual one or why it is slow; empty where it is as usual."""
    if machine.is_fast:
        return BFLOAT16, ""
    if machine.free_gib >= FLOAT32_GIB:
        return FLOAT32, f"{SLOW}; in float32 it is several times faster"
    needs = f"float32 needs {FLOAT32_GIB:.0f} GiB of free memory, {machine.free_gib:.1f} GiB are there"
    return BFLOAT16, f"{SLOW} and {needs}: slow"
