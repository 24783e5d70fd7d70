"""What a release of SGLang makes of the symbols that we use: parsed, never imported.

No text of SGLang's is kept: a symbol is remembered by two hashes, of its parameters and of its body without
comments, docstrings and our seams.
"""

import ast
import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache, cached_property
from importlib.util import resolve_name
from pathlib import Path
from typing import NamedTuple

SEAM = "layered_seams"
MOST_STEPS = 4  # from a name to where it is defined
COLLECTED = {"ServerArgs": "srt/arg_groups/fields/"}  # from 0.5.20 on its fields are those of classes there
NOTHING = ast.Module([], [])  # defines a name without parameters and body
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
Names = dict[str, ast.AST]  # what defines each
Imports = list[tuple[str, str, str]]  # file below the package, name there, name here


class Fingerprint(NamedTuple):
    """Hashes of a definition; an attribute that is only assigned, or an imported module, has none."""

    signature: str = ""
    body: str = ""


def last_name(node: ast.expr) -> str:
    """The last part of a dotted name; nothing for any other expression."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def definitions(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, Definition]]:
    """Qualified names of the functions and classes in a tree, with their nodes."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Definition):
            yield prefix + child.name, child
        yield from definitions(child, f"{prefix}{child.name}." if isinstance(child, Definition) else prefix)


def file_of(module: str) -> str:
    """The file, below the package, of a module of SGLang's."""
    return module.removeprefix("sglang.").replace(".", "/") + ".py"


class Release:
    """The source of one SGLang; `package` is its folder `sglang`."""

    def __init__(self, package: Path) -> None:
        self._package = package
        self._module: Callable[[str], tuple[Names, Imports]] = cache(self._read)
        self._members: Callable[[ast.AST], Names] = cache(_names_in)

    def fingerprint(self, symbol: str) -> Fingerprint | None:
        """Of a symbol FILE:NAME or FILE:CLASS.NAME; None where it is not."""
        file, _, name = symbol.partition(":")
        first, _, member = name.partition(".")
        file, node = self._at_top(file, first)
        if member:
            node = self._member(file, node, member) or self._collected(first, member)
        return None if node is None else _fingerprint(node)

    def elsewhere(self, symbol: str) -> str | None:
        """The one other file with a class or function, or for a member a method, of this name."""
        _, _, name = symbol.partition(":")
        indent, last = "    " if "." in name else "", name.rpartition(".")[2]
        line = re.compile(rf"^{indent}(?:class|def|async def) {last}\b", re.MULTILINE)
        places = [file for file, text in self._texts.items() if last in text and line.search(text)]
        return places[0] if len(places) == 1 else None

    @cached_property
    def _texts(self) -> dict[str, str]:
        paths = sorted(self._package.rglob("*.py"))
        return {str(path.relative_to(self._package)): path.read_text("utf-8", "replace") for path in paths}

    def _at_top(self, file: str, name: str, depth: int = 0) -> tuple[str, ast.AST | None]:
        """What defines a name in a module, or in one that the module has it from, and in which file."""
        names, imports = self._module(file)
        if name in names:
            return file, names[name]
        for source, original, alias in imports if depth <= MOST_STEPS else ():
            if alias in (name, "*"):
                found = self._at_top(source, name if alias == "*" else original, depth + 1)
                if found[1] is not None:
                    return found
        path = f"{file.removesuffix('.py')}/{name}.py"
        return path, NOTHING if path in self._texts else None

    def _member(self, file: str, owner: ast.AST | None, name: str, depth: int = 0) -> ast.AST | None:
        """A method or attribute of a class, or of a class that it is made of."""
        if not isinstance(owner, ast.ClassDef) or depth > MOST_STEPS:
            return None
        found = self._members(owner).get(name)
        for base in owner.bases:
            found = found or self._member(*self._at_top(file, last_name(base)), name, depth + 1)
        return found

    def _collected(self, owner: str, name: str) -> ast.AST | None:
        """A field that a class gets from the classes of a folder."""
        folder = COLLECTED.get(owner)
        files = [path for path in self._texts if folder is not None and path.startswith(folder)]
        return next((NOTHING for file in files if self._declares(file, name)), None)

    def _declares(self, file: str, name: str) -> bool:
        classes = [node for node in self._module(file)[0].values() if isinstance(node, ast.ClassDef)]
        return any(name in self._members(node) for node in classes)

    def _read(self, file: str) -> tuple[Names, Imports]:
        for path in (file, f"{file.removesuffix('.py')}/__init__.py"):
            if path in self._texts:
                tree = ast.parse(self._texts[path])
                package = f"sglang/{path}".rpartition("/")[0].replace("/", ".")
                return _names_in(tree), list(_imports_in(tree, package))
        return {}, []


def _names_in(scope: ast.AST) -> Names:
    """What a module or a class defines anywhere in it: the outermost of each name, and a value last."""
    nodes = [node for node in ast.walk(scope) if node is not scope]
    values: Names = {name: NOTHING for node in nodes for name in assigned(node)}
    return values | {node.name: node for node in reversed(nodes) if isinstance(node, Definition)}


def _imports_in(tree: ast.Module, package: str) -> Iterator[tuple[str, str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            module = resolve_name("." * node.level + (node.module or ""), package)
            for each in node.names if module.startswith("sglang.") else ():
                yield file_of(module), each.name, each.asname or each.name


def assigned(node: ast.AST) -> set[str]:
    """Names that a statement assigns, of the module, the class or `self`."""
    targets: list[ast.expr] = []
    if isinstance(node, ast.Assign):
        targets = [part for each in node.targets for part in getattr(each, "elts", [each])]
    elif isinstance(node, ast.AnnAssign):
        targets = [node.target]
    return {last_name(target) for target in targets}


def _fingerprint(node: ast.AST) -> Fingerprint:
    if not isinstance(node, Definition):
        return Fingerprint()
    head = node.bases if isinstance(node, ast.ClassDef) else [node.args]
    return Fingerprint(_hash(head), _hash(_without_seams(node.body)))


def _without_seams(body: list[ast.stmt]) -> list[ast.stmt]:
    """Statements without docstrings and without what our patches insert."""
    kept = [node for node in body if not _is_left_out(node)]
    for node in kept:
        for name in ("body", "orelse", "finalbody"):
            if getattr(node, name, None):
                setattr(node, name, _without_seams(getattr(node, name)))
    return kept


def _is_left_out(node: ast.stmt) -> bool:
    """A docstring, or a statement of ours: it names the seams, in its head if it has a body."""
    heads = [part for part in ast.iter_child_nodes(node) if isinstance(part, ast.expr)]
    names = {part.id for head in heads for part in ast.walk(head) if isinstance(part, ast.Name)}
    return SEAM in names or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))


def _hash(nodes: Sequence[ast.AST]) -> str:
    text = "\n".join(ast.dump(node) for node in nodes)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
