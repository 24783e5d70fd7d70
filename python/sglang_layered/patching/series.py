"""The text of a patch series: its order, patch headers, and zero-context diffs of pure insertions.

Knows no installed SGLang. The parser accepts nothing but insertions, so that no patch can carry a line of
upstream's text; because of that every edit is exactly invertible.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from sglang_layered.errors import PatchError
from sglang_layered.patching.files import sha256

HEADER_KEYS = ("Why", "Seam", "Off-path", "Upstream", "Drop-when", "Guard")

_FIRST_DIFF_LINE = re.compile(rb"^--- ", re.MULTILINE)
_HUNK = re.compile(rb"@@ -(\d+),0 \+(\d+),(\d+) @@(.*)", re.DOTALL)
_KINDS = {
    b" ": "a context line",
    b"-": "a removed line",
    b"+": "an added line outside its hunk",
    b"@": "a hunk",
}


@dataclass(frozen=True, slots=True)
class Hunk:
    """Lines inserted after `line` lines of the old file; the first becomes line `start` of the new file."""

    line: int
    start: int
    lines: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class FileDiff:
    """The insertions of one patch into one file; `path` is relative to the sglang package folder."""

    path: str
    hunks: tuple[Hunk, ...]

    def insert(self, data: bytes) -> bytes:
        """Return `data` with all hunks inserted."""
        lines = data.split(b"\n")
        for hunk in self.hunks:
            at = hunk.start - 1
            if at >= len(lines):
                raise PatchError(f"{self.path} has no line {hunk.line} to insert after; reinstall SGLang")
            lines[at:at] = hunk.lines
        return b"\n".join(lines)

    def remove(self, data: bytes) -> bytes:
        """Return `data` with all hunks taken out: the exact inverse of `insert`."""
        lines = data.split(b"\n")
        for hunk in reversed(self.hunks):
            at = slice(hunk.start - 1, hunk.start - 1 + len(hunk.lines))
            if tuple(lines[at]) != hunk.lines:
                raise PatchError(f"{self.path} lacks the inserted lines at {hunk.start}; reinstall SGLang")
            del lines[at]
        return b"\n".join(lines)


@dataclass(frozen=True)
class Patch:
    """One patch file: its header answers for it, its diffs do the work."""

    name: str
    header: tuple[tuple[str, str], ...]
    files: tuple[FileDiff, ...]
    diff: bytes

    @cached_property
    def diff_sha256(self) -> str:
        """Hash of the diff without the header, so that prose can be improved freely."""
        return sha256(self.diff)


def parse_series(text: str) -> tuple[str, ...]:
    """Return the patch names of a series file in order; `#` starts a comment."""
    names = (line.partition("#")[0].strip() for line in text.splitlines())
    return tuple(name for name in names if name)


def parse_patch(name: str, data: bytes) -> Patch:
    """Parse a patch file; raise PatchError, naming it, for anything but a header and pure insertions."""
    first = _FIRST_DIFF_LINE.search(data)
    if first is None:
        raise PatchError(f"{name}: no diff in it; every patch inserts lines")
    diff = data[first.start() :]
    return Patch(name, _parse_header(name, data[: first.start()].decode()), _parse_diff(name, diff), diff)


def insert_series(diffs: Iterable[FileDiff], data: bytes) -> bytes:
    """Apply the diffs of one file in the order of the series."""
    for diff in diffs:
        data = diff.insert(data)
    return data


def remove_series(diffs: Iterable[FileDiff], data: bytes) -> bytes:
    """Undo `insert_series`; `diffs` come in the order of the series."""
    for diff in reversed(list(diffs)):
        data = diff.remove(data)
    return data


def _parse_header(name: str, text: str) -> tuple[tuple[str, str], ...]:
    entries: list[tuple[str, str]] = []
    for line in text.splitlines():
        if line.startswith("  ") and entries:
            key, value = entries[-1]
            entries[-1] = (key, f"{value} {line.strip()}")
        elif line:
            key, _, value = line.partition(":")
            entries.append((key, value.strip()))
    keys = [key for key, _ in entries]
    missing = [key for key in HEADER_KEYS if key not in keys]
    if missing:
        raise PatchError(f"{name}: the header lacks {', '.join(missing)}")
    if tuple(keys) != HEADER_KEYS:
        raise PatchError(f"{name}: the header must hold exactly {', '.join(HEADER_KEYS)}, in this order")
    empty = [key for key, value in entries if not value]
    if empty:
        raise PatchError(f"{name}: nothing stands after {', '.join(empty)}")
    return tuple(entries)


def _parse_diff(name: str, diff: bytes) -> tuple[FileDiff, ...]:
    if not diff.endswith(b"\n"):
        raise PatchError(f"{name}: the last line has no newline")
    lines = diff[:-1].split(b"\n")
    files: list[FileDiff] = []
    at = 0
    while at < len(lines):
        path = _parse_path(name, lines, at)
        if path in [file.path for file in files]:
            raise PatchError(f"{name}: {path} appears twice; put its hunks together")
        hunks = _parse_hunks(name, lines, at + 2)
        at += 2 + sum(1 + len(hunk.lines) for hunk in hunks)
        files.append(FileDiff(path, hunks))
    return tuple(files)


def _parse_path(name: str, lines: list[bytes], at: int) -> str:
    old, new = (*lines[at : at + 2], b"")[:2]
    prefix = b"--- a/sglang/"
    if not old.startswith(b"--- "):
        kind = _KINDS.get(old[:1], "something unknown")
        raise PatchError(f"{name}: line {at + 1} of the diff is {kind}; patches hold insertions alone")
    if not old.startswith(prefix) or new != b"+++ b/sglang/" + old[len(prefix) :]:
        raise PatchError(f"{name}: line {at + 1} of the diff must name one file, a/sglang/X and b/sglang/X")
    path = old[len(prefix) :].decode()
    if ".." in path.split("/") or path.startswith("/"):
        raise PatchError(f"{name}: {path} leaves the sglang folder")
    return path


def _parse_hunks(name: str, lines: list[bytes], at: int) -> tuple[Hunk, ...]:
    hunks: list[Hunk] = []
    num_inserted = 0
    while at < len(lines) and lines[at].startswith(b"@@"):
        hunk = _parse_hunk(name, lines, at)
        if hunk.start != hunk.line + 1 + num_inserted or (hunks and hunk.line <= hunks[-1].line):
            raise PatchError(
                f"{name}: line {at + 1} of the diff: hunk out of order or with a wrong start line"
            )
        num_inserted += len(hunk.lines)
        at += 1 + len(hunk.lines)
        hunks.append(hunk)
    if not hunks:
        raise PatchError(f"{name}: line {at + 1} of the diff must be a hunk header")
    return tuple(hunks)


def _parse_hunk(name: str, lines: list[bytes], at: int) -> Hunk:
    where = f"{name}: line {at + 1} of the diff"
    match = _HUNK.fullmatch(lines[at])
    if match is None:
        raise PatchError(f"{where} must read @@ -LINE,0 +START,COUNT @@; patches hold insertions alone")
    if match[4]:
        raise PatchError(f"{where} has a section heading after the second @@; that is upstream's text")
    line, start, count = (int(match[group]) for group in (1, 2, 3))
    body = lines[at + 1 : at + 1 + count]
    for offset, text in enumerate(body):
        if not text.startswith(b"+"):
            kind = _KINDS.get(text[:1], "something unknown")
            raise PatchError(
                f"{name}: line {at + 2 + offset} of the diff is {kind}; patches hold insertions alone"
            )
    if len(body) != count or not count:
        raise PatchError(f"{where} announces {count} lines and {len(body)} follow")
    return Hunk(line, start, tuple(text[1:] for text in body))
