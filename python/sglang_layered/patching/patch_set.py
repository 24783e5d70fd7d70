"""A patch set on disk: its series, its patches, and the manifest that pins upstream's files by hash.

Knows no installed SGLang. A patch is a header and a zero-context diff. The parser accepts nothing but
insertions, so that no patch can carry a line of upstream's text; because of that every edit is exactly
invertible.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from sglang_layered.errors import PatchError

HEADER_KEYS = ("Why", "Seam", "Off-path", "Upstream", "Drop-when", "Guard")
_FIRST_DIFF_LINE = re.compile(rb"^--- ", re.MULTILINE)
_PART = re.compile(
    rb"--- a/sglang/(?!/|.*\.\.)(.+)\n\+\+\+ b/sglang/\1\n"
    rb"|@@ -(\d+),0 \+(\d+),(\d+) @@\n((?:\+.*\n)*)"
)
_FAULTS = (
    (b"--- ", " must name one file in the sglang folder, a/sglang/X and b/sglang/X"),
    (b"@@", " must read @@ -LINE,0 +START,COUNT @@ and no more; patches hold no text of upstream's"),
    (b" ", " is a context line; patches hold insertions alone"),
    (b"-", " is a removed line; patches hold insertions alone"),
    (b"", " is no inserted line of a hunk; patches hold insertions alone"),
)


@dataclass(frozen=True, slots=True)
class Hunk:
    """Lines inserted after `line` lines of the old file; the first becomes line `start` of the new file.

    `path` is relative to the sglang package folder. Old and new are before and after the patch.
    """

    path: str
    line: int
    start: int
    lines: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Patch:
    """One patch file: its header answers for it, its hunks do the work; `diff` is all below the header."""

    name: str
    header: dict[str, str]
    hunks: tuple[Hunk, ...]
    diff: bytes


@dataclass(frozen=True, slots=True)
class FileHashes:
    """SHA-256 of an upstream file before and after the whole series."""

    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Anchor:
    """Where a hunk goes, without upstream's text: hashes of the two pristine lines around it, and a scope.

    `before` and `after` are SHA-256 of the stripped lines; `scope` is the qualified name of the innermost def
    or class around the place, empty at module level.
    """

    path: str
    scope: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class PatchRecord:
    """What the manifest knows of a patch: its diff's hash, for prose may change, and its hunks' anchors."""

    diff: str
    anchors: tuple[Anchor, ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    """The exact SGLang that a patch set belongs to; paths are relative to the sglang package folder."""

    sglang: str
    files: dict[str, FileHashes]
    patches: dict[str, PatchRecord]


def default_root() -> Path:
    """Return the installed folder that holds one patch set per SGLang version."""
    return Path(str(files("sglang_layered_patches")))


def supported_versions(root: Path) -> tuple[str, ...]:
    """Return the SGLang versions that have a patch set, oldest first."""
    versions = [entry.parent.name for entry in root.glob("*/series")]
    return tuple(
        sorted(versions, key=lambda version: [int(part) for part in version.split(".") if part.isdigit()])
    )


def set_folder(root: Path, version: str) -> Path:
    """Return the folder of the patch set for `version`, or refuse the version."""
    supported = supported_versions(root)
    if version not in supported:
        raise PatchError(
            f"no patch set for SGLang {version}; supported: {', '.join(supported) or 'none'}. "
            f"Install a supported one, e.g. `pip install sglang=={supported[-1] if supported else 'VERSION'}`"
        )
    return root / version


def load_manifest(folder: Path) -> Manifest:
    """Read the manifest of a patch set."""
    path = folder / "manifest.json"
    try:
        raw = json.loads(path.read_text())
        hashes = {name: FileHashes(**each) for name, each in raw["files"].items()}
        records = {
            name: PatchRecord(record["diff"], tuple(Anchor(**anchor) for anchor in record["anchors"]))
            for name, record in raw["patches"].items()
        }
        return Manifest(raw["sglang"], hashes, records)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise PatchError(f"{path} cannot be read ({error}); reinstall sglang-layered") from error


def load_patches(folder: Path) -> tuple[Patch, ...]:
    """Read the patches of a patch set in the order of its series."""
    try:
        return tuple(parse_patch(name, (folder / name).read_bytes()) for name in read_series(folder))
    except OSError as error:
        raise PatchError(
            f"{folder}: the series cannot be read ({error}); reinstall sglang-layered"
        ) from error


def read_series(folder: Path) -> list[str]:
    """Return the patch names of a patch set's series in order; `#` starts a comment."""
    names = (line.partition("#")[0].strip() for line in (folder / "series").read_text().splitlines())
    return [name for name in names if name]


def hunks_of(patches: Iterable[Patch], path: str) -> list[Hunk]:
    """All hunks of one upstream file, in the order of the series."""
    return [hunk for patch in patches for hunk in patch.hunks if hunk.path == path]


def insert(hunks: Iterable[Hunk], data: bytes) -> bytes:
    """Return a pristine file with its hunks inserted."""
    lines = data.split(b"\n")
    for hunk in hunks:
        at = hunk.start - 1
        if at >= len(lines):
            raise PatchError(f"{hunk.path} has no line {hunk.line} to insert after; reinstall SGLang")
        lines[at:at] = hunk.lines
    return b"\n".join(lines)


def remove(hunks: list[Hunk], data: bytes) -> bytes:
    """Return a patched file with its hunks taken out: the exact inverse of `insert`."""
    lines = data.split(b"\n")
    for hunk in reversed(hunks):
        del lines[hunk.start - 1 : hunk.start - 1 + len(hunk.lines)]
    return b"\n".join(lines)


def parse_patch(name: str, data: bytes) -> Patch:
    """Parse a patch file; raise PatchError, naming it, for anything but a header and pure insertions."""
    first = _FIRST_DIFF_LINE.search(data)
    if first is None:
        raise PatchError(f"{name}: no diff in it; every patch inserts lines")
    head, diff = data[: first.start()], data[first.start() :]
    return Patch(name, _parse_header(name, head.decode()), _parse_diff(name, diff), diff)


def _parse_header(name: str, text: str) -> dict[str, str]:
    folded = re.sub(r"\n  +", " ", text)  # an indented line goes on with the entry above it
    entries = [line.partition(":") for line in folded.splitlines() if line]
    keys, header = [key for key, _, _ in entries], {key: value.strip() for key, _, value in entries}
    lacking = [key for key in HEADER_KEYS if not header.get(key)]
    if lacking:
        raise PatchError(f"{name}: the header lacks {', '.join(lacking)}, or nothing stands after it")
    if tuple(keys) != HEADER_KEYS:
        raise PatchError(f"{name}: the header must hold exactly {', '.join(HEADER_KEYS)}, in this order")
    return header


def _parse_diff(name: str, diff: bytes) -> tuple[Hunk, ...]:
    if not diff.endswith(b"\n"):
        raise PatchError(f"{name}: the last line has no newline")
    files: dict[str, list[Hunk]] = {}
    path, at = "", 0
    while at < len(diff):
        number, part = diff.count(b"\n", 0, at) + 1, _PART.match(diff, at)
        where = f"{name}: line {number} of the diff"
        if part is None:
            raise PatchError(where + next(text for start, text in _FAULTS if diff.startswith(start, at)))
        if part[1]:
            path = part[1].decode()
            if path in files:
                raise PatchError(f"{where} names a file that was named before; put its hunks together")
            files[path] = []
        else:
            files[path].append(_parse_hunk(where, path, part, files[path]))
        at = part.end()
    return tuple(hunk for hunks in files.values() for hunk in hunks)


def _parse_hunk(where: str, path: str, part: re.Match[bytes], before: list[Hunk]) -> Hunk:
    line, start, count = (int(part[group]) for group in (2, 3, 4))
    lines = tuple(text[1:] for text in part[5].split(b"\n")[:-1])
    num_inserted = sum(len(hunk.lines) for hunk in before)
    if start != line + 1 + num_inserted or (before and line <= before[-1].line):
        raise PatchError(f"{where}: hunk out of order or with a wrong start line")
    if not lines or len(lines) != count:
        raise PatchError(f"{where} announces {count} lines and {len(lines)} follow")
    return Hunk(path, line, start, lines)
