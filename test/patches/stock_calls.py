"""The calls that a function makes, read from its source without importing it."""

from __future__ import annotations

import ast
import builtins
from collections import Counter
from functools import cache
from pathlib import Path

SEAMS = "layered_seams."  # calls that our patches insert


def calls_in(file: Path, name: str) -> Counter[str]:
    """How often a function calls each dotted name, in its decorators and nested functions too.

    Built-in functions and our seams are left out. Arguments that are only handed on are no calls.

    Raises:
        LookupError: the file has no such function.
    """
    function = find_function(file, name)
    names = (dotted(node.func) for node in ast.walk(function) if isinstance(node, ast.Call))
    return Counter(name for name in names if not (name.startswith(SEAMS) or hasattr(builtins, name)))


def last_names(function: ast.FunctionDef) -> set[str]:
    """The last part of every name that a function calls."""
    return {dotted(node.func).rpartition(".")[2] for node in ast.walk(function) if isinstance(node, ast.Call)}


def find_function(file: Path, name: str) -> ast.FunctionDef:
    """The function `name` or method `Class.name` of a file.

    Raises:
        LookupError: the file has no such function.
    """
    body: list[ast.stmt] = parse(file).body
    found: ast.stmt | None = None
    for part in name.split("."):
        kinds = ast.FunctionDef | ast.ClassDef
        found = next((node for node in body if isinstance(node, kinds) and node.name == part), None)
        body = found.body if isinstance(found, ast.ClassDef) else []
    if not isinstance(found, ast.FunctionDef):
        raise LookupError(f"{file.name} has no {name}")
    return found


@cache
def parse(file: Path) -> ast.Module:
    """The syntax tree of a file, read once."""
    return ast.parse(file.read_bytes())


def dotted(node: ast.expr) -> str:
    """The name of what is called, without arguments and indices: `a.b().c[].d` for `a.b(1).c[0].d`."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    if isinstance(node, ast.Call):
        return f"{dotted(node.func)}()"
    if isinstance(node, ast.Subscript):
        return f"{dotted(node.value)}[]"
    return f"<{type(node).__name__}>"
