"""What keeps a patch set in order, for whoever changes it: `scripts/patch-set lint` and `refresh`.

Installed servers need none of it, so it is no part of the wheel.
"""

import base64
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from importlib.metadata import distributions
from pathlib import Path

import click

from sglang_layered.errors import PatchError
from sglang_layered.patching import Site, locate
from sglang_layered.patching.engine import SEAM_MARK, anchors_in
from sglang_layered.patching.patch_set import (
    Anchor,
    FileHashes,
    Manifest,
    Patch,
    PatchRecord,
    hunks_of,
    insert,
    load_manifest,
    load_patches,
    parse_patch,
    read_series,
    set_folder,
    supported_versions,
)
from sglang_layered.patching.port import FILE, OURS, all_uses, left_out
from sglang_layered.patching.site import sha256
from sglang_layered.patching.symbols import Release

PATCHES = Path(__file__).resolve().parents[2] / "patches"


def lint(root: Path) -> list[str]:
    """What is wrong with the patch sets under `root`, nothing when all is well. Needs no SGLang."""
    versions = supported_versions(root)
    if not versions:
        return [f"{root}: no patch set"]
    return [f"{version}: {problem}" for version in versions for problem in _lint_set(root / version)]


def refresh(site: Site, root: Path) -> Path:
    """Write manifest.json anew from the pristine SGLang in `site`; return its path.

    Raises PatchError when a file of the site is not as its installer recorded it, or already holds our lines.
    """
    folder = set_folder(root, site.version)
    patches = load_patches(folder)
    files: dict[str, FileHashes] = {}
    anchors: dict[str, list[Anchor]] = {patch.name: [] for patch in patches}
    for path in sorted(paths_of(patches)):
        data = _read_pristine(site.package, path)
        files[path] = FileHashes(sha256(data), sha256(insert(hunks_of(patches, path), data)))
        there = list(anchors_in(path, data))  # patches go on from one another, anchors stay the pristine ones
        for patch in patches:
            for hunk in hunks_of([patch], path):
                anchor = there[hunk.start - 1]
                anchors[patch.name].append(anchor)
                there[hunk.start : hunk.start] = [anchor] * len(hunk.lines)
    records = {patch.name: PatchRecord(sha256(patch.diff), tuple(anchors[patch.name])) for patch in patches}
    target = folder / "manifest.json"
    target.write_text(json.dumps(asdict(Manifest(site.version, files, records)), indent=2) + "\n")
    return target


def write_symbols(site: Site, folder: Path, ours: Path = OURS) -> Path:
    """Keep what our symbols are in this SGLang, patched or not; PatchError when it lacks some."""
    release, found = Release(site.package), all_uses(folder, ours)
    made = {symbol: release.fingerprint(symbol) for symbol in found}
    gone = {symbol for symbol, each in made.items() if each is None} - left_out(folder, ours).keys()
    missing = [f"{symbol} ({found[symbol][0].place})" for symbol in sorted(gone)]
    if missing:
        raise PatchError("\n  ".join([f"SGLang {site.version} has not got what we use:", *missing]))
    lines = [f"{json.dumps(name)}: {json.dumps(each)}" for name, each in made.items() if each]
    path = folder / FILE
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    return path


def recorded_sha256(package: Path, path: str) -> str | None:
    """The hash that the installer's RECORD gives for a file of the package, None if it gives none."""
    for distribution in distributions(name="sglang", path=[str(package.parent)]):
        for file in distribution.files or ():
            if str(file) == f"sglang/{path}" and file.hash is not None:
                return base64.urlsafe_b64decode(f"{file.hash.value}==").hex()
    return None


def paths_of(patches: Iterable[Patch]) -> set[str]:
    """The upstream files that patches insert lines into."""
    return {hunk.path for patch in patches for hunk in patch.hunks}


def _read_pristine(package: Path, path: str) -> bytes:
    try:
        data = (package / path).read_bytes()
    except FileNotFoundError as error:
        raise PatchError(f"{package} has no {path}; the series does not belong to this SGLang") from error
    if recorded_sha256(package, path) not in (None, sha256(data)) or SEAM_MARK.search(data):
        raise PatchError(f"{path} is not pristine; run `sglang-layered patch revert` on that site first")
    return data


def _lint_set(folder: Path) -> list[str]:
    listed = Counter(read_series(folder))
    present = {path.name for path in folder.glob("*.patch")}
    problems = [f"{name} is listed twice in series" for name in sorted(listed) if listed[name] > 1]
    problems += [f"{name} is listed in series and missing" for name in listed if name not in present]
    problems += [f"{name} is not listed in series" for name in sorted(present - listed.keys())]
    patches: list[Patch] = []
    for name in sorted(present):
        try:
            patches.append(parse_patch(name, (folder / name).read_bytes()))
        except PatchError as error:
            problems.append(str(error))
        except UnicodeDecodeError:
            problems.append(f"{name}: the header is not UTF-8")
    for patch in patches:
        guard = patch.header["Guard"]
        if not (folder.parent.parent / guard).is_file():
            problems.append(f"{patch.name}: its guard test {guard} does not exist")
    return problems + _lint_manifest(folder, patches)


def _lint_manifest(folder: Path, patches: list[Patch]) -> list[str]:
    try:
        manifest = load_manifest(folder)
    except PatchError as error:
        return [str(error)]
    kept = {name: record.diff for name, record in manifest.patches.items()}
    here = {patch.name: sha256(patch.diff) for patch in patches}
    stale = sorted(name for name in kept | here if kept.get(name) != here.get(name))
    problems = [f"manifest.json has not the current diff of {name}" for name in stale]
    if manifest.sglang != folder.name:
        problems.append(f"manifest.json is for SGLang {manifest.sglang}")
    if not problems and manifest.files.keys() != paths_of(patches):
        problems.append("manifest.json and the patches name different files")
    return [f"{problem}; run `scripts/patch-set refresh --site PRISTINE`" for problem in problems]


@click.group()
@click.option("--patches", type=click.Path(path_type=Path), default=PATCHES, hidden=True)
@click.pass_context
def main(context: click.Context, patches: Path) -> None:
    """Check the patch sets of this repository, or write what is computed of them."""
    context.obj = patches


@main.command("lint")
@click.pass_obj
def lint_command(root: Path) -> None:
    """Check the patch sets themselves; needs no SGLang."""
    problems = lint(root)
    if problems:
        raise click.ClickException("\n  ".join(["the patch set is not sound:", *problems]))
    click.echo(f"{root}: the patch set is sound")


@main.command("refresh")
@click.option(
    "--site", required=True, type=click.Path(path_type=Path), help="A pristine site-packages folder."
)
@click.option("--symbols", is_flag=True, help="Keep what we use of it instead; it may be patched then.")
@click.pass_obj
def refresh_command(root: Path, site: Path, symbols: bool) -> None:
    """Recompute manifest.json from a pristine SGLang; with --symbols symbols.json."""
    try:
        place = locate(site=site)
        written = write_symbols(place, set_folder(root, place.version)) if symbols else refresh(place, root)
    except PatchError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"wrote {written}")


if __name__ == "__main__":
    main()
