"""Applies, reverts and verifies a patch set on an installed SGLang; a file's hash alone tells its state.

There is no backup, because none is needed: a patch set holds pure insertions, so the original is the patched
file without the inserted lines. Revert computes it, and writes it only if it has the hash of the pristine
file. Nothing is remembered beside the files themselves, so a run that was killed half way is completed by the
next apply or taken back by the next revert. Every other patched file imports from `sglang/__init__.py`; it is
written first and taken back last, so that SGLang can be imported at any moment between.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from sglang_layered.errors import PatchError
from sglang_layered.patching.files import locked, remove_leftovers, replace_file, sha256
from sglang_layered.patching.manifest import (
    FileHashes,
    Manifest,
    PatchSet,
    default_root,
    load_manifest,
    load_patch_set,
    set_folder,
)
from sglang_layered.patching.series import FileDiff, insert_series, remove_series
from sglang_layered.patching.site import Site, at_package, locate

SEAM_MARK = re.compile(
    rb"layered[._]seams"
)  # in every file that a patch set of ours, of any version, touched

Edit = Callable[[list[FileDiff], bytes], bytes]


class FileState(Enum):
    """What an upstream file is, judged by its hash alone."""

    PRISTINE = "pristine"
    PATCHED = "patched"
    CHANGED = "changed"
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class FoundFile:
    """An upstream file as found: `data` are the bytes that were hashed, empty when the file is missing."""

    path: str
    state: FileState
    data: bytes
    sha256: str


def inspect(package: Path, manifest: Manifest) -> list[FoundFile]:
    """Read every file of the manifest once and tell its state."""
    return [_find(package, path, hashes) for path, hashes in manifest.files.items()]


def apply(site: Site, root: Path | None = None) -> list[str]:
    """Bring every file into its patched state; return the files written, none when all were patched.

    Raises PatchError, with nothing written, when the version has no patch set or a file is neither pristine
    nor patched.
    """
    return _bring(site, root, FileState.PATCHED, insert_series)


def revert(site: Site, root: Path | None = None) -> list[str]:
    """Bring every file back into its pristine state; return the files written. Raises as `apply` does."""
    return _bring(site, root, FileState.PRISTINE, remove_series)


def verify(site: Site, root: Path | None = None) -> Manifest:
    """Prove by hash that every file is patched, and return the manifest it was proved against.

    Raises PatchError, naming the file and the remedy, when one is not.
    """
    manifest = load_manifest(set_folder(root or default_root(), site.version))
    found = inspect(site.package, manifest)
    _refuse_foreign(found, manifest)
    pristine = [file.path for file in found if file.state is FileState.PRISTINE]
    if pristine:
        raise PatchError(
            f"SGLang in {site.package} is not patched ({', '.join(pristine)}); "
            "run `sglang-layered patch apply`"
        )
    return manifest


def verify_patched(package_dir: Path | None = None) -> None:
    """Raise PatchError unless the SGLang in `package_dir`, by default this interpreter's, is patched."""
    verify(locate() if package_dir is None else at_package(package_dir))


def _find(package: Path, path: str, hashes: FileHashes) -> FoundFile:
    try:
        data = (package / path).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return FoundFile(path, FileState.MISSING, b"", "none")
    except OSError as error:
        raise PatchError(f"{package / path} cannot be read ({error}); give this user read access") from error
    found = sha256(data)
    states = {hashes.before: FileState.PRISTINE, hashes.after: FileState.PATCHED}
    return FoundFile(path, states.get(found, FileState.CHANGED), data, found)


def _bring(site: Site, root: Path | None, goal: FileState, edit: Edit) -> list[str]:
    patch_set = load_patch_set(set_folder(root or default_root(), site.version))
    try:
        with locked(site.package):
            contents = _new_contents(site.package, patch_set, goal, edit)
            _write(site.package, patch_set.manifest, contents)
    except OSError as error:
        raise PatchError(
            f"cannot change {site.package}: {error}; free the cause and run the same command again, "
            "it completes what is left"
        ) from error
    return list(contents)


def _new_contents(package: Path, patch_set: PatchSet, goal: FileState, edit: Edit) -> dict[str, bytes]:
    """Compute and check every file that must change, before anything is written."""
    found = inspect(package, patch_set.manifest)
    _refuse_foreign(found, patch_set.manifest)
    if goal is FileState.PRISTINE:
        found.reverse()
    contents = {
        file.path: edit(patch_set.diffs(file.path), file.data) for file in found if file.state is not goal
    }
    _check_contents(contents, patch_set.manifest, goal)
    return contents


def _refuse_foreign(found: list[FoundFile], manifest: Manifest) -> None:
    foreign = [file for file in found if file.state in (FileState.CHANGED, FileState.MISSING)]
    if not foreign:
        return
    lines = [
        f"  {file.path} is {file.state.value}: expected sha256 {manifest.files[file.path].before} (pristine) "
        f"or {manifest.files[file.path].after} (patched), found {file.sha256}"
        for file in foreign
    ]
    what = f"these files are not those of SGLang {manifest.sglang}; nothing was written:"
    if any(SEAM_MARK.search(file.data) for file in foreign):
        what = (
            "these files were patched by another version of sglang-layered, or changed since; "
            "nothing was written:"
        )
    raise PatchError(
        "\n".join([what, *lines])
        + f"\nReinstall it (`pip install --force-reinstall --no-deps sglang=={manifest.sglang}`), "
        "then run `sglang-layered patch apply`"
    )


def _check_contents(contents: Mapping[str, bytes], manifest: Manifest, goal: FileState) -> None:
    for path, data in contents.items():
        hashes = manifest.files[path]
        expected = hashes.after if goal is FileState.PATCHED else hashes.before
        if sha256(data) != expected:
            raise PatchError(
                f"the patch set gives {path} sha256 {sha256(data)}, its manifest says {expected}; nothing "
                "was written. Reinstall sglang-layered, or as a developer run `sglang-layered patch refresh`"
            )


def _write(package: Path, manifest: Manifest, contents: Mapping[str, bytes]) -> None:
    for folder in {(package / path).parent for path in manifest.files}:
        remove_leftovers(folder)
    for path, data in contents.items():
        replace_file(package / path, data)
