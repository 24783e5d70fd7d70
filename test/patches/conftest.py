"""Fixtures of the patch tests: the real files made pristine, their syntax trees, and a toy SGLang."""

import ast
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from patch_maintenance import refresh
from seam_trees import SeamFile
from sglang_layered.patching import Site, apply, locate
from sglang_layered.patching.patch_set import (
    Manifest,
    Patch,
    default_root,
    hunks_of,
    load_manifest,
    load_patches,
    remove,
    set_folder,
    supported_versions,
)
from sglang_layered.patching.site import at_package, sha256
from toy_sglang import HEADER, TOY_PRISTINE, TOY_SERIES, TOY_VERSION, Toy


@dataclass(frozen=True)
class RealSet:
    """The patch set of a release."""

    folder: Path
    patches: tuple[Patch, ...]
    manifest: Manifest


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    toy = Toy(tmp_path / "site-packages", tmp_path / "repo" / "patches")
    toy.folder.mkdir(parents=True)
    guard = tmp_path / "repo" / "test" / "guard.py"
    guard.parent.mkdir()
    guard.touch()
    for path, text in TOY_PRISTINE.items():
        (toy.package / path).parent.mkdir(parents=True, exist_ok=True)
        (toy.package / path).write_text(text)
    toy.set_version(TOY_VERSION)
    for name, diff in TOY_SERIES.items():
        (toy.folder / name).write_text(HEADER + diff)
    (toy.folder / "series").write_text("# a toy\n" + "\n".join(TOY_SERIES) + "\n")
    refresh(toy.site, toy.root)
    return toy


@pytest.fixture(scope="session")
def real_site() -> Site:
    return locate()


@pytest.fixture(scope="session")
def real_set(real_site: Site) -> RealSet:
    return set_of(real_site.version)


def set_of(version: str) -> RealSet:
    folder = set_folder(default_root(), version)
    return RealSet(folder, load_patches(folder), load_manifest(folder))


@pytest.fixture(scope="session")
def pristine_sglang(real_site: Site, real_set: RealSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package folder with the touched files of the installed SGLang, pristine whatever they are now."""
    return pristine_copy(real_site, real_set, tmp_path_factory.mktemp("pristine"))


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


@pytest.fixture
def sglang_copy(pristine_sglang: Path, tmp_path: Path) -> Site:
    """A pristine copy that a test may change."""
    shutil.copytree(pristine_sglang.parent, tmp_path / "site-packages")
    return at_package(tmp_path / "site-packages" / "sglang")


@pytest.fixture(scope="session")
def seam_file(pristine_sglang: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], SeamFile]:
    """Parse one of the touched files of a patched copy, without importing it."""
    return patched_trees(pristine_sglang, tmp_path_factory.mktemp("patched"))


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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Guards of another release's patches would look in the installed one for places that it has not got."""
    version, guards = locate().version, {}
    for each in supported_versions(default_root()):
        guards[each] = {Path(patch.header["Guard"]).name for patch in set_of(each).patches}
    others = set().union(*guards.values()) - guards.get(version, set())
    for item in items:
        if item.path.name in others and "seam_file" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.skip(f"guards the patches of another SGLang than {version}"))
