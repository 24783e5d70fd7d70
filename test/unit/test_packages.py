"""Every package of the repository is in the wheel."""

from __future__ import annotations

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
