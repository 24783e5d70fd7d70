"""Fixtures of the patch tests: the real files made pristine, their syntax trees, and a toy SGLang."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from patch_maintenance import refresh
from seam_trees import RealSet, SeamFile, patched_trees, pristine_copy, set_of
from sglang_layered.patching import Site, locate
from sglang_layered.patching.patch_set import default_root, supported_versions
from sglang_layered.patching.site import at_package
from toy_sglang import HEADER, TOY_PRISTINE, TOY_SERIES, TOY_VERSION, Toy


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


@pytest.fixture(scope="session")
def pristine_sglang(real_site: Site, real_set: RealSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package folder with the touched files of the installed SGLang, pristine whatever they are now."""
    return pristine_copy(real_site, real_set, tmp_path_factory.mktemp("pristine"))


@pytest.fixture
def sglang_copy(pristine_sglang: Path, tmp_path: Path) -> Site:
    """A pristine copy that a test may change."""
    shutil.copytree(pristine_sglang.parent, tmp_path / "site-packages")
    return at_package(tmp_path / "site-packages" / "sglang")


@pytest.fixture(scope="session")
def seam_file(pristine_sglang: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], SeamFile]:
    """Parse one of the touched files of a patched copy, without importing it."""
    return patched_trees(pristine_sglang, tmp_path_factory.mktemp("patched"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Guards of another release's patches would look in the installed one for places that it has not got."""
    version, guards = locate().version, {}
    for each in supported_versions(default_root()):
        guards[each] = {Path(patch.header["Guard"]).name for patch in set_of(each).patches}
    others = set().union(*guards.values()) - guards.get(version, set())
    for item in items:
        if item.path.name in others and "seam_file" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.skip(f"guards the patches of another SGLang than {version}"))
