"""Syntax trees of the touched files, for the guard tests; nothing of SGLang is imported."""

import ast
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property

SEAMS_IMPORT = "from sglang import _layered_seams as layered_seams"


class SeamRemover(ast.NodeTransformer):
    """Drops whatever names our package: an oracle that knows neither patches nor line numbers."""

    NAMES = frozenset({"layered_seams", "_layered_seams", "_find_layered_seams"})

    def visit(self, node: ast.AST) -> ast.AST | None:
        if isinstance(node, ast.ImportFrom) and ast.unparse(node) == SEAMS_IMPORT:
            return None
        if isinstance(node, ast.FunctionDef) and node.name in self.NAMES:
            return None
        if isinstance(node, ast.Expr | ast.Delete | ast.Assign) and self._is_ours(node):
            return None
        if isinstance(node, ast.If) and self._is_ours(node.test):
            return None
        if isinstance(node, ast.Try) and ast.unparse(node.body[0]).startswith("from sglang_layered import"):
            return None
        if isinstance(node, ast.ClassDef):
            node.decorator_list = [entry for entry in node.decorator_list if not self._is_ours(entry)]
        return self.generic_visit(node)

    def _is_ours(self, node: ast.AST) -> bool:
        return any(isinstance(part, ast.Name) and part.id in self.NAMES for part in ast.walk(node))


@dataclass(frozen=True)
class SeamFile:
    """One upstream file: its tree with the seams in, and whether it is upstream's own tree without them."""

    patched: ast.Module
    pristine: ast.Module

    @cached_property
    def adds_only_seams(self) -> bool:
        bare = SeamRemover().visit(deepcopy(self.patched))
        return ast.dump(bare) == ast.dump(self.pristine)

    def find(self, *names: str) -> ast.stmt:
        """The class or function reached through `names`."""
        node: ast.AST = self.patched
        for name in names:
            node = next(child for child in ast.iter_child_nodes(node) if getattr(child, "name", None) == name)
        assert isinstance(node, ast.stmt)
        return node

    def imports_seams_first(self) -> bool:
        """Whether the module imports our seams unconditionally, ahead of its first class or function."""
        for node in self.patched.body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                return False
            if ast.unparse(node) == SEAMS_IMPORT:
                return True
        return False


def index_of(body: list[ast.stmt], text: str) -> int:
    """Where the statement whose first line unparses to `text` stands in `body`; it must stand there once."""
    found = [at for at, node in enumerate(body) if ast.unparse(node).splitlines()[0] == text]
    assert len(found) == 1, f"{text!r} stands {len(found)} times"
    return found[0]
