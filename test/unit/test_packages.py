"""Every package of the repository is in the wheel, and what a server imports never brings the lab."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
tomllib = pytest.importorskip("tomllib", reason="from Python 3.11 on")


def test_no_package_is_left_out_of_the_wheel() -> None:
    settings = tomllib.loads((REPO / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = {
        ".".join((name, *init.parent.relative_to(REPO / folder).parts))
        for name, folder in settings["package-dir"].items()
        for init in (REPO / folder).rglob("__init__.py")
    }
    assert set(settings["packages"]) == found


IMPORT_ALL = r"""
import importlib, pkgutil, re, sys
import sglang_layered
from sglang_layered.upstream.releases import PACKAGES, RELEASE
OTHER = re.compile(rf"sglang_layered\.upstream\.v(?!{PACKAGES[RELEASE][1:]})")
for module in pkgutil.walk_packages(sglang_layered.__path__, "sglang_layered."):
    if not module.name.endswith("__main__") and not OTHER.match(module.name):
        importlib.import_module(module.name)
print(*[name for name in sys.modules if name.startswith("sglang_layered_lab")])
"""


def test_the_runtime_brings_no_module_of_the_lab() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORT_ALL], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr
