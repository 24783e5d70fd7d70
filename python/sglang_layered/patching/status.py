"""Says, for any installed SGLang, which patches are applied, fit, or do not fit. Writes nothing."""

from dataclasses import dataclass
from pathlib import Path

from sglang_layered.errors import PatchError
from sglang_layered.patching.anchors import SourceIndex
from sglang_layered.patching.engine import SEAM_MARK, FileState, FoundFile, inspect
from sglang_layered.patching.manifest import Anchor, Manifest, default_root, load_manifest, supported_versions
from sglang_layered.patching.site import Site


@dataclass(frozen=True, slots=True)
class PatchStatus:
    """What can be said of one patch: `applied`, `fits`, or why not."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Status:
    """The patches of one set as seen on one installed SGLang; `supported` tells whether apply would try."""

    site: Site
    set_version: str
    supported: bool
    patches: tuple[PatchStatus, ...]


def status(site: Site, root: Path | None = None) -> Status:
    """Compare the installed SGLang with its patch set, or with the newest one when it has none."""
    root = root or default_root()
    versions = supported_versions(root)
    if not versions:
        raise PatchError(f"{root} holds no patch set; reinstall sglang-layered")
    supported = site.version in versions
    version = site.version if supported else versions[-1]
    manifest = load_manifest(root / version)
    return Status(site, version, supported, _judge(inspect(site.package, manifest), manifest))


def _judge(found: list[FoundFile], manifest: Manifest) -> tuple[PatchStatus, ...]:
    files = {file.path: file for file in found}
    indexes = {file.path: _index(file) for file in found if file.state is FileState.CHANGED}
    patches: list[PatchStatus] = []
    for name, record in manifest.patches.items():
        by_path: dict[str, list[Anchor]] = {}
        for anchor in record.anchors:
            by_path.setdefault(anchor.path, []).append(anchor)
        texts = [_judge_file(files[path], anchors, indexes.get(path)) for path, anchors in by_path.items()]
        patches.append(PatchStatus(name, "; ".join(dict.fromkeys(texts))))
    return tuple(patches)


def _index(file: FoundFile) -> SourceIndex | None:
    try:
        return SourceIndex(file.data)
    except (SyntaxError, ValueError):
        return None


def _judge_file(file: FoundFile, anchors: list[Anchor], index: SourceIndex | None) -> str:
    if file.state is FileState.PATCHED:
        return "applied"
    if file.state is FileState.PRISTINE:
        return "fits"
    if file.state is FileState.MISSING:
        return f"does not fit: {file.path} is missing"
    differs = f"{file.path} differs (found {file.sha256})"
    if SEAM_MARK.search(file.data):
        return f"does not fit: {differs} and holds lines of another version of sglang-layered, or was changed"
    if index is None:
        return f"does not fit: {differs} and does not parse"
    places = [index.places(anchor) for anchor in anchors]
    for anchor, found in zip(anchors, places, strict=True):
        if len(found) != 1:
            times = f"found {len(found)} times" if found else "not found"
            return f"does not fit: {differs}, anchor in {anchor.scope or 'the module'} {times}"
    numbers = ", ".join(str(found[0] + 1) for found in places)
    return f"unknown: {differs}, would fit at line {numbers}"
