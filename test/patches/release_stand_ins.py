"""Loads a module that was written for a release, with stand-ins for what it imports of SGLang."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any

import pytest

PACKAGE = "sglang_layered.upstream.v0_5_23"


@contextmanager
def loaded(concern: str, **modules: Any) -> Iterator[ModuleType]:
    """The module of this concern, with stand-ins for modules of SGLang; `__` stands for a dot."""
    names = {f"sglang.srt.{name.replace('__', '.')}": module for name, module in modules.items()}
    own = f"{PACKAGE}.{concern}"
    installed = sys.modules.pop(own, None)  # where this release is
    with pytest.MonkeyPatch.context() as patch:
        for name, module in names.items():
            patch.setitem(sys.modules, name, module)
            package, _, last = name.rpartition(".")
            patch.setattr(import_module(package), last, module, raising=False)
        yield import_module(own)
    sys.modules.pop(own, None)
    if installed is not None:
        sys.modules[own] = installed
        setattr(import_module(PACKAGE), concern, installed)
