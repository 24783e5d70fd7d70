"""What the packages import is declared: by the runtime without an extra, by the lab also in its own."""

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
OURS = {"sglang_layered", "sglang_layered_kernels", "sglang_layered_lab", "sglang_layered_patches"}


def sources(part: str) -> list[Path]:
    """Files of the runtime, or of the lab, to which the benchmarks of the kernels belong."""
    kernels = sorted((REPO / "kernels").rglob("*.py"))
    runtime = [*sorted((REPO / "python/sglang_layered").rglob("*.py")), *kernels]
    if part == "runtime":
        return [path for path in runtime if path.name != "bench.py"]
    lab = sorted((REPO / "python/sglang_layered_lab").rglob("*.py"))
    return [*lab, *(path for path in kernels if path.name == "bench.py")]


def normal(name: str) -> str:
    """A distribution's name as package indexes compare it, without version and extras."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\s\[<>=!~;]", name.strip())[0]).lower()


def imported(path: Path) -> set[str]:
    """Top-level modules of a file's imports, of those by a constant `import_module(...)` too."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {module.partition(".")[0] for node in ast.walk(tree) for module in _modules(node)}


def _modules(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.Import():
            yield from (alias.name for alias in node.names)
        case ast.ImportFrom(module=str(module), level=0):
            yield module
        case ast.Call(func=ast.Name(id="import_module"), args=[ast.Constant(value=str(module)), *_]):
            yield module


@pytest.mark.parametrize(("part", "extras"), [("runtime", ()), ("lab", ("lab",))])
def test_every_import_is_declared(part: str, extras: tuple[str, ...]) -> None:
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    of_extras = [each for extra in extras for each in project["optional-dependencies"][extra]]
    declared = {normal(each) for each in (*project["dependencies"], *of_extras)}
    owners = packages_distributions()
    undeclared = {
        f"{path.relative_to(REPO)}: {module}"
        for path in sources(part)
        for module in imported(path) - OURS - sys.stdlib_module_names
        if declared.isdisjoint(map(normal, owners.get(module, (module,))))
    }
    assert not undeclared
