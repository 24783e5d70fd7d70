"""Layered prefill for SGLang.

Importing this package imports neither torch nor sglang: `sglang/__init__.py` reaches `sglang_layered.seams`
before either is loaded.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    __version__: str


def __getattr__(name: str) -> str:
    """Look up `__version__`: that of the installation, since no file has it, and a server never asks."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("sglang-layered")
    except PackageNotFoundError:  # a checkout on the path that nobody installed
        return "0.0"
