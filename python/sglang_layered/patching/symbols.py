"""What our code uses of SGLang, found in our source, and what a release makes of it: parsed, never imported.

A use is an import from `sglang`, or an attribute of one of the objects in `OWNERS`. No text of SGLang's is
kept: a symbol is remembered by two hashes, of its parameters and of its body without comments and docstrings.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

# How our code calls SGLang's objects, and the classes that they are of.
OWNERS = {
    "scheduler": "srt/managers/scheduler.py:Scheduler",
    "model_runner": "srt/model_executor/model_runner.py:ModelRunner",
    "tp_worker": "srt/managers/tp_worker.py:TpModelWorker",
    "batch": "srt/managers/schedule_batch.py:ScheduleBatch",
    "req": "srt/managers/schedule_batch.py:Req",
}
SEAM = "layered_seams"
MOST_STEPS = 4  # from a name to where it is defined
NOTHING = ast.Module([], [])  # defines a name without parameters and body
Found = tuple[str, ast.AST]  # file below the package, and what defines the symbol there


@dataclass(frozen=True, slots=True)
class Use:
    """`symbol` is FILE:NAME or FILE:CLASS.NAME; `place` is our file and line."""

    symbol: str
    place: str


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Hashes of a definition; an attribute that is only assigned, or an imported module, has none."""

    signature: str = ""
    body: str = ""


def uses(ours: Path) -> list[Use]:
    """Every use of SGLang in the Python files below `ours`, in order of files and lines."""
    return [use for path in sorted(ours.rglob("*.py")) for use in _uses_in(path, str(path.relative_to(ours)))]


def _uses_in(path: Path, name: str) -> Iterator[Use]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sglang."):
            file = _file_of(node.module or "")
            yield from (Use(f"{file}:{alias.name}", f"{name}:{node.lineno}") for alias in node.names)
        elif isinstance(node, ast.Attribute):
            owner = OWNERS.get(_last_name(node.value).lstrip("_"))
            if owner is not None and not node.attr.startswith("layered_"):
                yield Use(f"{owner}.{node.attr}", f"{name}:{node.lineno}")


def _last_name(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _file_of(module: str) -> str:
    return module.removeprefix("sglang.").replace(".", "/") + ".py"


class Release:
    """The source of one SGLang; `package` is its folder `sglang`."""

    def __init__(self, package: Path) -> None:
        self._package = package
        self._module: Callable[[str], _Module | None] = lru_cache(maxsize=None)(self._read)
        self._members: Callable[[ast.ClassDef], dict[str, ast.AST]] = lru_cache(maxsize=None)(_members_of)

    def fingerprint(self, symbol: str) -> Fingerprint | None:
        """Of a symbol; None where it is not."""
        found = self._find(symbol)
        return None if found is None else _fingerprint(found[1])

    def elsewhere(self, symbol: str) -> str | None:
        """Another file that defines a class or function of this name at its top, if there is just one."""
        name = symbol.partition(":")[2]
        places = self._defined.get(name, []) if "." not in name else []
        return places[0] if len(places) == 1 else None

    @cached_property
    def _defined(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for path in sorted(self._package.rglob("*.py")):
            text = path.read_text(encoding="utf-8", errors="replace")
            for name in re.findall(r"^(?:class|def|async def) (\w+)", text, re.MULTILINE):
                found.setdefault(name, []).append(str(path.relative_to(self._package)))
        return found

    def _find(self, symbol: str) -> Found | None:
        file, _, name = symbol.partition(":")
        first, _, rest = name.partition(".")
        found = self._at_top(file, first)
        if found is None or not rest:
            return found
        return self._member(found, rest)

    def _at_top(self, file: str, name: str, depth: int = 0) -> Found | None:
        """What defines a name in a module, or in one that the module has it from."""
        module, folder = self._module(file), file.removesuffix(".py")
        if module is not None and name in module.defined:
            return file, module.defined[name]
        if module is None or depth > MOST_STEPS:
            is_module = (self._package / folder / f"{name}.py").is_file()
            return (f"{folder}/{name}.py", NOTHING) if is_module else None
        for source, original, alias in module.imports:
            if alias in (name, "*"):
                found = self._at_top(source, name if alias == "*" else original, depth + 1)
                if found is not None:
                    return found
        is_module = (self._package / folder / f"{name}.py").is_file()
        return (f"{folder}/{name}.py", NOTHING) if is_module else None

    def _member(self, found: Found, name: str, depth: int = 0) -> Found | None:
        """A method or attribute of a class, or of a class that it is made of."""
        file, owner = found
        if not isinstance(owner, ast.ClassDef) or depth > MOST_STEPS:
            return None
        members = self._members(owner)
        if name in members:
            return file, members[name]
        for base in owner.bases:
            above = self._at_top(file, _last_name(base))
            inherited = None if above is None else self._member(above, name, depth + 1)
            if inherited is not None:
                return inherited
        return None

    def _read(self, file: str) -> _Module | None:
        for path in (self._package / file, self._package / file.removesuffix(".py") / "__init__.py"):
            if path.is_file():
                folder = path.parent.relative_to(self._package)
                tree = ast.parse(path.read_text(encoding="utf-8", errors="replace"))
                return _Module.of(tree, str(folder))
        return None


@dataclass(frozen=True, slots=True)
class _Module:
    """Names that a module defines anywhere, and (file, name, alias) of what it imports of SGLang."""

    defined: dict[str, ast.AST]
    imports: list[tuple[str, str, str]]

    @classmethod
    def of(cls, tree: ast.Module, folder: str) -> _Module:
        """`folder` is the one that relative imports begin at."""
        defined: dict[str, ast.AST] = {}
        imports: list[tuple[str, str, str]] = []
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                defined.setdefault(node.name, node)
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                for name in _assigned(node):
                    defined.setdefault(name, NOTHING)
            elif isinstance(node, ast.ImportFrom):
                file = _source_of(node, folder)
                imports += [(file, each.name, each.asname or each.name) for each in node.names if file]
        return cls(defined, imports)


def _source_of(node: ast.ImportFrom, folder: str) -> str:
    """The file that an import leads to; nothing where it leads out of SGLang."""
    module = node.module or ""
    if node.level:
        parts = folder.split("/")[: len(folder.split("/")) - node.level + 1]
        return "/".join([*parts, *module.split(".")]) + ".py"
    return _file_of(module) if module.startswith("sglang.") else ""


def _members_of(owner: ast.ClassDef) -> dict[str, ast.AST]:
    """Methods of a class, and what it assigns to itself in any of them."""
    nodes = list(ast.walk(owner))
    members: dict[str, ast.AST] = {name: NOTHING for node in nodes for name in _assigned(node)}
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            members[node.name] = node
    return members


def _assigned(node: ast.AST) -> set[str]:
    """Names that a statement assigns, of the module, the class or `self`."""
    targets: list[Any] = []
    if isinstance(node, ast.Assign):
        targets = [part for each in node.targets for part in getattr(each, "elts", [each])]
    elif isinstance(node, ast.AnnAssign):
        targets = [node.target]
    return {_last_name(target) for target in targets}


def _fingerprint(node: ast.AST) -> Fingerprint:
    if isinstance(node, ast.ClassDef):
        return Fingerprint(_hash(node.bases), _hash(_without_seams(node.body)))
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return Fingerprint(_hash([node.args]), _hash(_without_seams(node.body)))
    return Fingerprint()


def _without_seams(body: list[ast.stmt]) -> list[ast.stmt]:
    """Statements without docstrings and without what our patches insert."""
    kept = [node for node in body if not _is_seam(node) and not _is_docstring(node)]
    for node in kept:
        for name in ("body", "orelse", "finalbody"):
            if getattr(node, name, None):
                setattr(node, name, _without_seams(getattr(node, name)))
    return kept


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _is_seam(node: ast.stmt) -> bool:
    """A statement of ours: it names the seams, in its head if it has a body."""
    parts = [
        value
        for name, value in ast.iter_fields(node)
        if name not in ("body", "orelse", "finalbody", "handlers")
    ]
    heads = [each for part in parts for each in (part if isinstance(part, list) else [part])]
    names = (found for head in heads if isinstance(head, ast.AST) for found in ast.walk(head))
    return any(isinstance(found, ast.Name) and found.id == SEAM for found in names)


def _hash(nodes: list[Any]) -> str:
    text = "\n".join(ast.dump(node) for node in nodes)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
