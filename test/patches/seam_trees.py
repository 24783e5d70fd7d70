"""Patch sets, the files that they touch as released and patched, and their trees; SGLang is not imported."""

import ast
import shutil
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from sglang_layered.patching import Site, apply
from sglang_layered.patching.patch_set import (
    Manifest,
    Patch,
    default_root,
    hunks_of,
    load_manifest,
    load_patches,
    remove,
    set_folder,
)
from sglang_layered.patching.site import at_package, sha256

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


@dataclass(frozen=True)
class RealSet:
    """The patch set of a release."""

    folder: Path
    patches: tuple[Patch, ...]
    manifest: Manifest


def set_of(version: str) -> RealSet:
    folder = set_folder(default_root(), version)
    return RealSet(folder, load_patches(folder), load_manifest(folder))


def pristine_copy(site: Site, its: RealSet, folder: Path) -> Path:
    """The files of a site that its patch set touches, as released."""
    package = folder / "sglang"
    for path, hashes in its.manifest.files.items():
        data = (site.package / path).read_bytes()
        if sha256(data) == hashes.after:
            data = remove(hunks_of(its.patches, path), data)
        assert sha256(data) == hashes.before, f"{path} of {site.package} is neither pristine nor patched"
        (package / path).parent.mkdir(parents=True, exist_ok=True)
        (package / path).write_bytes(data)
    shutil.copy(site.package / "_version.py", package)
    for info in site.package.parent.glob("sglang-*.dist-info"):
        (package.parent / info.name).mkdir()
        for name in ("METADATA", "RECORD"):
            shutil.copy(info / name, package.parent / info.name)
    return package


def patched_trees(released: Path, folder: Path) -> Callable[[str], SeamFile]:
    """Apply the patches to a copy of these pristine files; parse one of them when it is asked for."""
    site_packages = folder / "site-packages"
    shutil.copytree(released.parent, site_packages)
    apply(at_package(site_packages / "sglang"))

    @cache
    def parse(path: str) -> SeamFile:
        patched, pristine = site_packages / "sglang" / path, released / path
        return SeamFile(ast.parse(patched.read_bytes()), ast.parse(pristine.read_bytes()))

    return parse
