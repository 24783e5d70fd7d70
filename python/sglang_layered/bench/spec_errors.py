"""What is wrong with a spec, and at which key. Knows no file: `spec_lines` finds the line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from math import isfinite

from sglang_layered.errors import BenchError


def dotted(keys: Sequence[str | int]) -> str:
    """Write a path as people do: `load.trace.file`, `server.flags[2]`."""
    text = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys)
    return text.removeprefix(".")


class SpecError(BenchError):
    """A field of a spec is bad.

    `keys` is its path: names of tables, then the key, with indices of lists and arrays of tables. `problem`
    says what is wrong and what to write instead.
    """

    def __init__(self, keys: Sequence[str | int], problem: str) -> None:
        self.keys, self.problem = tuple(keys), problem
        super().__init__(f"{dotted(self.keys)}: {problem}" if self.keys else problem)

    def below(self, *parents: str | int) -> SpecError:
        """Return the same problem, seen from the tables around it."""
        return SpecError((*parents, *self.keys), self.problem)


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """Return the remedy for an unknown name: the closest known one, or all of them."""
    names = list(known)
    close = get_close_matches(given, names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join(names)}"


def check_choice(key: str, given: str, known: Iterable[str]) -> None:
    """Raise a SpecError unless `given` is known."""
    names = list(known)
    if given not in names:
        raise SpecError((key,), f"{given!r} is unknown; {did_you_mean(given, names)}")


def check_file_name(key: str, given: str) -> None:
    """Raise a SpecError unless a file can be called this."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", given):
        raise SpecError(
            (key,), f"{given!r} makes no file name; use letters, digits and . _ - after the first"
        )


def check_above(key: str, value: float | None, unit: str, *, least: float | None = None) -> None:
    """Raise a SpecError unless the value is absent or finite and above 0, or at least `least` where given."""
    if value is None:
        return
    good = isfinite(value) and (value > 0 if least is None else value >= least)
    if not good:
        limit = "above 0" if least is None else f"{least:g} or more"
        raise SpecError((key,), f"{value:g} is out of range; give {unit}, {limit}")
