"""Where hunks go: places computed in a pristine file and looked up in another one, by hashes alone."""

import ast
from collections.abc import Iterator

from sglang_layered.patching.files import sha256
from sglang_layered.patching.manifest import Anchor
from sglang_layered.patching.series import FileDiff


class SourceIndex:
    """Line hashes and scopes of one Python file; a *place* is the number of lines in front of it."""

    def __init__(self, data: bytes) -> None:
        lines = data.split(b"\n")
        if lines[-1] == b"":
            lines.pop()
        self._hashes = [sha256(line.strip()) for line in (b"", *lines, b"")]
        self._spans = list(_scope_spans(ast.parse(data)))

    def scope(self, place: int) -> str:
        """Qualified name of the innermost def or class around a place, empty at module level."""
        around = [(start, name) for start, end, name in self._spans if start <= place < end]
        return max(around)[1] if around else ""

    def anchor(self, path: str, place: int) -> Anchor:
        """Describe a place by its neighbours."""
        return Anchor(path, self.scope(place), self._hashes[place], self._hashes[place + 1])

    def places(self, anchor: Anchor) -> list[int]:
        """All places that `anchor` describes; one means the hunk would fit there."""
        pairs = zip(self._hashes, self._hashes[1:], strict=False)
        matching = [place for place, pair in enumerate(pairs) if pair == (anchor.before, anchor.after)]
        return [place for place in matching if self.scope(place) == anchor.scope]


def pristine_places(diffs: list[FileDiff], num_lines: int) -> list[list[int]]:
    """For each diff of a series over one file, the places of its hunks in the pristine file."""
    origins: list[int | None] = list(range(1, num_lines + 1))
    result: list[list[int]] = []
    for diff in diffs:
        places: list[int] = []
        for hunk in diff.hunks:
            at = hunk.start - 1
            places.append(max((origin for origin in origins[:at] if origin is not None), default=0))
            origins[at:at] = [None] * len(hunk.lines)
        result.append(places)
    return result


def _scope_spans(node: ast.AST, prefix: str = "") -> Iterator[tuple[int, int, str]]:
    for child in ast.iter_child_nodes(node):
        name = prefix
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = f"{prefix}.{child.name}" if prefix else child.name
            yield child.lineno, child.end_lineno or child.lineno, name
        yield from _scope_spans(child, name)
