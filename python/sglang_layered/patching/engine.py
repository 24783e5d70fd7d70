"""Applies, reverts and verifies a patch set on an installed SGLang, and says of any which patches would fit.

A file's hash alone tells its state.

There is no backup, because none is needed: a patch set holds pure insertions, so the original is the patched
file without the inserted lines. Revert computes it, and writes it only if it has the hash of the pristine
file. Nothing is remembered beside the files themselves, so a run that was killed half way is completed by the
next apply or taken back by the next revert. Every other patched file imports from `sglang/__init__.py`; it is
written first and taken back last, so that SGLang can be imported at any moment between.

Where a hunk goes is kept as an anchor: by hashes alone, computed in a pristine file and looked up in others.
"""

import ast
import re
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Literal

from sglang_layered.errors import PatchError
from sglang_layered.patching import patch_set
from sglang_layered.patching.site import Site, locate, locked, remove_leftovers, replace_file, sha256
from sglang_layered.patching.symbols import definitions

SEAM_MARK = re.compile(rb"layered[._]seams")  # in every file that a patch set of any version of ours touched
State = Literal["pristine", "patched", "changed", "missing"]


@dataclass(frozen=True, slots=True)
class FoundFile:
    """An upstream file; its hash alone tells the state, and `data` is empty when it is missing."""

    path: str
    state: State
    data: bytes
    sha256: str


@dataclass(frozen=True, slots=True)
class PatchStatus:
    """What can be said of one patch: `applied`, `fits`, or why not."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Status:
    """The patches of one set as seen on one installed SGLang; apply tries only one of the same version."""

    set_version: str
    patches: tuple[PatchStatus, ...]


def apply(site: Site, root: Path | None = None) -> list[str]:
    """Bring every file into its patched state; return the files written, none when all were patched.

    Raises PatchError, with nothing written, when the version has no patch set or a file is neither pristine
    nor patched.
    """
    return _bring(site, root, "patched")


def revert(site: Site, root: Path | None = None) -> list[str]:
    """Bring every file back into its pristine state; return the files written. Raises as `apply` does."""
    return _bring(site, root, "pristine")


def verify(site: Site, root: Path | None = None) -> patch_set.Manifest:
    """Prove by hash that every file is patched, and return the manifest it was proved against.

    Raises PatchError, naming the file and the remedy, when one is not.
    """
    manifest = patch_set.load_manifest(patch_set.set_folder(root or patch_set.default_root(), site.version))
    pristine = [file.path for file in _own_files(site.package, manifest) if file.state == "pristine"]
    if pristine:
        raise PatchError(
            f"SGLang in {site.package} is not patched ({', '.join(pristine)}); "
            "run `sglang-layered patch apply`"
        )
    return manifest


def verify_patched() -> None:
    """Raise PatchError unless this interpreter's SGLang is patched."""
    verify(locate())


def status(site: Site, root: Path | None = None) -> Status:
    """Compare the installed SGLang with its patch set, or with the newest one when it has none."""
    root = root or patch_set.default_root()
    versions = patch_set.supported_versions(root)
    if not versions:
        raise PatchError(f"{root} holds no patch set; reinstall sglang-layered")
    version = site.version if site.version in versions else versions[-1]
    manifest = patch_set.load_manifest(root / version)
    files = {path: _find(site.package, manifest, path) for path in manifest.files}
    patches: list[PatchStatus] = []
    for name, record in manifest.patches.items():
        paths = dict.fromkeys(anchor.path for anchor in record.anchors)
        texts = [
            _judge(files[path], [each for each in record.anchors if each.path == path]) for path in paths
        ]
        patches.append(PatchStatus(name, "; ".join(dict.fromkeys(texts))))
    return Status(version, tuple(patches))


@cache
def anchors_in(path: str, data: bytes) -> tuple[patch_set.Anchor, ...]:
    """Describe by its neighbours each place of a Python file: before its first line, after it, and so on.

    Raises SyntaxError or ValueError when it does not parse.
    """
    hashes = [sha256(line.strip()) for line in (b"", *data.split(b"\n"))]
    scopes = [(node.lineno, node.end_lineno or 0, name) for name, node in definitions(ast.parse(data))]
    anchors: list[patch_set.Anchor] = []
    for place, (before, after) in enumerate(pairwise(hashes)):
        _, scope = max(
            ((start, name) for start, end, name in scopes if start <= place < end), default=(0, "")
        )
        anchors.append(patch_set.Anchor(path, scope, before, after))
    return tuple(anchors)


def _find(package: Path, manifest: patch_set.Manifest, path: str) -> FoundFile:
    try:
        data = (package / path).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return FoundFile(path, "missing", b"", "none")
    except OSError as error:
        raise PatchError(f"{package / path} cannot be read ({error}); give this user read access") from error
    found, hashes = sha256(data), manifest.files[path]
    states: dict[str, State] = {hashes.before: "pristine", hashes.after: "patched"}
    return FoundFile(path, states.get(found, "changed"), data, found)


def _own_files(package: Path, manifest: patch_set.Manifest) -> list[FoundFile]:
    """Every file of the manifest, each pristine or patched; PatchError names the others."""
    found = [_find(package, manifest, path) for path in manifest.files]
    foreign = [file for file in found if file.state in ("changed", "missing")]
    if not foreign:
        return found
    lines = [
        f"  {file.path} is {file.state}: expected sha256 {manifest.files[file.path].before} (pristine) "
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


def _bring(site: Site, root: Path | None, goal: State) -> list[str]:
    folder = patch_set.set_folder(root or patch_set.default_root(), site.version)
    patches, manifest = patch_set.load_patches(folder), patch_set.load_manifest(folder)
    try:
        with locked(site.package):
            contents = _new_contents(_own_files(site.package, manifest), patches, manifest, goal)
            for parent in {(site.package / path).parent for path in manifest.files}:
                remove_leftovers(parent)
            for path, data in contents.items():
                replace_file(site.package / path, data)
    except OSError as error:
        raise PatchError(
            f"cannot change {site.package}: {error}; free the cause and run the same command again, "
            "it completes what is left"
        ) from error
    return list(contents)


def _new_contents(
    found: list[FoundFile], patches: tuple[patch_set.Patch, ...], manifest: patch_set.Manifest, goal: State
) -> dict[str, bytes]:
    """Compute and check every file that must change, before anything is written."""
    edit, order = (patch_set.insert, found) if goal == "patched" else (patch_set.remove, found[::-1])
    contents: dict[str, bytes] = {}
    for file in order:
        if file.state == goal:
            continue
        hashes = manifest.files[file.path]
        expected = hashes.after if goal == "patched" else hashes.before
        data = edit(patch_set.hunks_of(patches, file.path), file.data)
        if sha256(data) != expected:
            raise PatchError(
                f"the patch set gives {file.path} sha256 {sha256(data)}, its manifest says {expected}; "
                "nothing was written. Reinstall sglang-layered, or as a developer run "
                "`scripts/patch-set refresh`"
            )
        contents[file.path] = data
    return contents


def _judge(file: FoundFile, anchors: list[patch_set.Anchor]) -> str:
    """Say of one file whether a patch with these anchors is in it or would fit."""
    known = {"patched": "applied", "pristine": "fits", "missing": f"does not fit: {file.path} is missing"}
    if file.state in known:
        return known[file.state]
    differs = f"{file.path} differs (found {file.sha256})"
    if SEAM_MARK.search(file.data):
        return f"does not fit: {differs} and holds lines of another version of sglang-layered, or was changed"
    try:
        there = anchors_in(file.path, file.data)
    except (SyntaxError, ValueError):
        return f"does not fit: {differs} and does not parse"
    numbers: list[int] = []
    for anchor in anchors:
        found = [number for number, each in enumerate(there, 1) if each == anchor]
        if len(found) != 1:
            times = f"found {len(found)} times" if found else "not found"
            return f"does not fit: {differs}, anchor in {anchor.scope or 'the module'} {times}"
        numbers += found
    return f"unknown: {differs}, would fit at line {', '.join(map(str, numbers))}"
