"""For developers of the patch set: make its manifest from a pristine SGLang, check it without one."""

from pathlib import Path

from sglang_layered.errors import PatchError
from sglang_layered.patching.anchors import SourceIndex, pristine_places
from sglang_layered.patching.engine import SEAM_MARK
from sglang_layered.patching.files import sha256
from sglang_layered.patching.manifest import (
    Anchor,
    FileHashes,
    Manifest,
    PatchRecord,
    PatchSet,
    load_manifest,
    load_patches,
    set_folder,
    supported_versions,
)
from sglang_layered.patching.series import Patch, insert_series, parse_patch, parse_series
from sglang_layered.patching.site import Site, recorded_sha256


def refresh(site: Site, root: Path) -> Path:
    """Write manifest.json anew from the pristine SGLang in `site`; return its path.

    Raises PatchError when a file of the site is not as its installer recorded it, or already holds our lines.
    """
    folder = set_folder(root, site.version)
    patches = load_patches(folder)
    patch_set = PatchSet(folder, patches, Manifest(site.version, {}, {}))
    paths = sorted({diff.path for patch in patches for diff in patch.files})
    sources = {path: _read_pristine(site.package, path) for path in paths}
    anchors = {path: _anchors(patch_set, path, sources[path]) for path in paths}
    manifest = Manifest(
        sglang=site.version,
        files={
            path: FileHashes(sha256(data), sha256(insert_series(patch_set.diffs(path), data)))
            for path, data in sources.items()
        },
        patches={
            patch.name: PatchRecord(
                patch.diff_sha256,
                tuple(anchor for diff in patch.files for anchor in anchors[diff.path][patch.name]),
            )
            for patch in patches
        },
    )
    target = folder / "manifest.json"
    target.write_text(manifest.to_json())
    return target


def lint(root: Path) -> list[str]:
    """Return what is wrong with the patch sets under `root`, nothing when all is well. Needs no SGLang."""
    versions = supported_versions(root)
    if not versions:
        return [f"{root}: no patch set"]
    return [f"{version}: {problem}" for version in versions for problem in _lint_set(root / version)]


def _read_pristine(package: Path, path: str) -> bytes:
    try:
        data = (package / path).read_bytes()
    except FileNotFoundError as error:
        raise PatchError(f"{package} has no {path}; the series does not belong to this SGLang") from error
    if recorded_sha256(package, path) not in (None, sha256(data)) or SEAM_MARK.search(data):
        raise PatchError(f"{path} is not pristine; run `sglang-layered patch revert` on that site first")
    return data


def _anchors(patch_set: PatchSet, path: str, data: bytes) -> dict[str, list[Anchor]]:
    index = SourceIndex(data)
    names = [patch.name for patch in patch_set.patches if any(diff.path == path for diff in patch.files)]
    places = pristine_places(patch_set.diffs(path), data.count(b"\n") + 1)
    return {
        name: [index.anchor(path, place) for place in found]
        for name, found in zip(names, places, strict=True)
    }


def _lint_set(folder: Path) -> list[str]:
    listed = parse_series((folder / "series").read_text())
    present = {path.name for path in folder.glob("*.patch")}
    problems = [
        f"{name} is listed twice in series" for name in sorted({n for n in listed if listed.count(n) > 1})
    ]
    problems += [f"{name} is listed in series and missing" for name in listed if name not in present]
    problems += [f"{name} is not listed in series" for name in sorted(present.difference(listed))]
    patches: list[Patch] = []
    for name in sorted(present):
        try:
            patches.append(parse_patch(name, (folder / name).read_bytes()))
        except (PatchError, UnicodeDecodeError) as error:
            problems.append(
                str(error) if isinstance(error, PatchError) else f"{name}: the header is not UTF-8"
            )
    for patch in patches:
        guard = dict(patch.header)["Guard"]
        if not (folder.parent.parent / guard).is_file():
            problems.append(f"{patch.name}: its guard test {guard} does not exist")
    return problems + _lint_manifest(folder, patches)


def _lint_manifest(folder: Path, patches: list[Patch]) -> list[str]:
    remedy = "run `sglang-layered patch refresh --site PRISTINE`"
    try:
        manifest = load_manifest(folder)
    except PatchError as error:
        return [str(error)]
    problems: list[str] = []
    if manifest.sglang != folder.name:
        problems.append(f"manifest.json is for SGLang {manifest.sglang}; {remedy}")
    for patch in patches:
        record = manifest.patches.get(patch.name)
        if record is None or record.diff != patch.diff_sha256:
            problems.append(f"manifest.json has not the current diff of {patch.name}; {remedy}")
    gone = sorted(manifest.patches.keys() - {patch.name for patch in patches})
    problems += [f"manifest.json names {name}, which cannot be read; {remedy}" for name in gone]
    if not problems and set(manifest.files) != {diff.path for patch in patches for diff in patch.files}:
        problems.append(f"manifest.json and the patches name different files; {remedy}")
    return problems
