"""What the packages import is declared: the runtime's imports without an extra, the lab's there or in its own."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
tomllib = pytest.importorskip("tomllib", reason="from Python 3.11 on")
RUNTIME, LAB = ("python/sglang_layered", "kernels"), ("python/sglang_layered_lab",)
OURS = {"sglang_layered", "sglang_layered_kernels", "sglang_layered_lab", "sglang_layered_patches"}
# Tried and done without: a benchmark of others that a user may have, and the modules of Python 3.11.
PERHAPS = {"guidellm"}


def normal(name: str) -> str:
    """A distribution's name as package indexes compare it, without version and extras."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\s\[<>=!~;]", name.strip())[0]).lower()


def imported(folders: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """File and top-level module of every import, of those by a constant `import_module(...)` too."""
    for path in (path for folder in folders for path in sorted((REPO / folder).rglob("*.py"))):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for module in _modules(node):
                yield str(path.relative_to(REPO)), module.partition(".")[0]


def _modules(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.Import():
            yield from (alias.name for alias in node.names)
        case ast.ImportFrom(module=str(module), level=0):
            yield module
        case ast.Call(func=ast.Name(id="import_module"), args=[ast.Constant(value=str(module)), *_]):
            yield module


@pytest.mark.parametrize(("folders", "extras"), [(RUNTIME, ()), (LAB, ("lab",))], ids=["runtime", "lab"])
def test_every_import_is_declared(folders: tuple[str, ...], extras: tuple[str, ...]) -> None:
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    of_extras = [each for extra in extras for each in project["optional-dependencies"][extra]]
    declared = {normal(each) for each in (*project["dependencies"], *of_extras)}
    owners = packages_distributions()
    known = OURS | PERHAPS | sys.stdlib_module_names
    undeclared = {
        f"{file}: {module}"
        for file, module in imported(folders)
        if module not in known and declared.isdisjoint(map(normal, owners.get(module, ())))
    }
    assert not undeclared
