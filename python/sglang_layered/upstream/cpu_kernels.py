"""Offers the CPU reference kernels as `sgl_kernel` where the real wheel cannot be loaded.

The wheel that SGLang depends on needs libcuda.so.1, which comes with the CUDA driver. Without a driver its
import fails, and SGLang's CPU path, which imports functions from it, fails with it. This module imports
neither torch nor sglang: it runs before both.
"""

import ctypes
import importlib.abc
import sys
from collections.abc import Sequence
from functools import cache, partial
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

KERNEL_MODULE = "sgl_kernel"
CUDA_DRIVER = "libcuda.so.1"
TREE_FROM_MASK = "reconstruct_indices_from_tree_mask"  # the one of `sgl_kernel.speculative`

# Submodules from which SGLang's CPU path imports. Only these are offered: `from sgl_kernel import name` looks
# for a submodule when there is no such attribute, so a finder of every submodule would make every name exist.
RECURRENT_SUBMODULE = "sgl_kernel.mamba"
DRAFTS_SUBMODULE = "sgl_kernel.speculative"
CPU_SUBMODULES = frozenset({RECURRENT_SUBMODULE, DRAFTS_SUBMODULE})


@cache
def cuda_driver_available() -> bool:
    """Return whether the CUDA driver library can be loaded; asked once per process."""
    try:
        ctypes.CDLL(CUDA_DRIVER)
    except OSError:
        return False
    return True


def other_build_installed() -> bool:
    """Return whether an `sgl_kernel` for another device (CPU with AMX, ROCm) is installed; it then stays.

    The CUDA wheel keeps its `common_ops` library in one folder per GPU generation, the other builds beside
    `__init__.py`.
    """
    spec = PathFinder.find_spec(KERNEL_MODULE)
    folders = (spec.submodule_search_locations or ()) if spec else ()
    return any(next(Path(folder).glob("common_ops.*"), None) for folder in folders)


class CpuKernelLoader(importlib.abc.Loader):
    """Fills the module `sgl_kernel`, or a submodule, with the CPU reference kernels."""

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Let Python make a plain module."""
        return None

    def exec_module(self, module: ModuleType) -> None:
        """Give the module our functions, and `__getattr__` for all other names."""
        cpu = import_module("sglang_layered_kernels.cpu")
        if module.__name__ == KERNEL_MODULE:
            vars(module).update({name: getattr(cpu, name) for name in cpu.__all__}, __all__=cpu.__all__)
            _offer_operators()
        elif module.__name__ == RECURRENT_SUBMODULE:
            vars(module).update(import_module("sglang_layered_kernels.cpu.recurrent").FUNCTIONS)
        elif module.__name__ == DRAFTS_SUBMODULE:
            drafts = import_module("sglang_layered_kernels.cpu.speculative")
            vars(module)[TREE_FROM_MASK] = getattr(drafts, TREE_FROM_MASK)
        module.__doc__ = cpu.__doc__
        vars(module)["__getattr__"] = partial(cpu.resolve_missing, module.__name__)


def _offer_operators() -> None:
    """Put what SGLang takes from `torch.ops.sgl_kernel` there.

    As plain attributes: nothing is registered, and to SGLang one of AMX's names would stand for AMX kernels.
    """
    operators = vars(import_module("torch").ops.sgl_kernel)
    operators.update(import_module("sglang_layered_kernels.cpu.missing").missing_operators())
    operators.update(import_module("sglang_layered_kernels.cpu.recurrent").OPERATORS)


class CpuKernelFinder(importlib.abc.MetaPathFinder):
    """Finds `sgl_kernel` and the submodules that the CPU path imports."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return a spec for the names that we offer; None for all others: Python asks the next finder."""
        if fullname != KERNEL_MODULE and fullname not in CPU_SUBMODULES:
            return None
        return ModuleSpec(fullname, CpuKernelLoader(), origin=__name__, is_package=fullname == KERNEL_MODULE)


def offer_cpu_kernels() -> None:
    """Make `import sgl_kernel` find the CPU reference kernels; do nothing where real ones can be loaded."""
    if KERNEL_MODULE in sys.modules or any(isinstance(finder, CpuKernelFinder) for finder in sys.meta_path):
        return
    if cuda_driver_available() or other_build_installed():
        return
    sys.meta_path.insert(0, CpuKernelFinder())
