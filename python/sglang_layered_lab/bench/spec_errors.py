"""What is wrong with a spec: at which key, on which line of the file, and what to write instead.

Pydantic finds what is wrong; `spec_keys` makes sentences of it. Knows no single field.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from functools import lru_cache, reduce
from itertools import pairwise
from operator import getitem
from pathlib import Path
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError

from sglang_layered.errors import BenchError

Keys = str | Sequence[str | int]


class SpecError(BenchError, ValueError):
    """Fields of a spec are bad.

    `keys` is the path of the first: names of tables, then the key, with indices of lists and arrays of
    tables; it may be given as text with dots. `problem` says what is wrong with it and what to write instead.
    `errors` are all, each by itself.
    """

    def __init__(self, keys: Keys, problem: str, others: "Sequence[SpecError]" = ()) -> None:
        self.keys = tuple(keys.split(".")) if isinstance(keys, str) else tuple(keys)
        self.problem = problem
        text = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in self.keys)
        own = f"{text.removeprefix('.')}: {problem}" if text else problem
        super().__init__("\n".join([own, *map(str, others)]))
        self.errors: tuple[SpecError, ...] = (SpecError(self.keys, problem), *others) if others else (self,)


def raise_all(errors: Iterable[SpecError]) -> None:
    """Raise what was found, each problem of a key once; nothing where nothing was found."""
    found = list({(each.keys, each.problem): each for error in errors for each in error.errors}.values())
    if found:
        raise SpecError(found[0].keys, found[0].problem, found[1:])


@contextmanager
def gathered(errors: list[SpecError]) -> Iterator[None]:
    """Put what a block raises to the errors instead, so that the next block can find more."""
    try:
        yield
    except SpecError as error:
        errors += error.errors


def meant(given: str, known: Iterable[str]) -> list[str]:
    """Names that were probably meant: those with all its words (`rate`: `rate_per_s`), or the closest.

    Likeness by letters alone is a bad guide to a short name: it takes `trace` for `rate`.
    """
    names = list(known)
    words = set(given.split("_"))
    longer = [name for name in names if words <= set(name.split("_"))]
    shorter = [name for name in names if set(name.split("_")) < words]
    return longer or shorter or get_close_matches(given, names, n=1)


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """Return the remedy for an unknown name: the known ones that were probably meant, or all of them."""
    names = list(known)
    close = meant(given, names)
    return f"did you mean {' or '.join(map(repr, close))}?" if close else f"choose one of {', '.join(names)}"


def parse_toml(text: str) -> dict[str, Any]:
    """Parse the text into plain values.

    Raises:
        SpecError: it is not TOML; without keys.
    """
    try:
        values: dict[str, Any] = tomlkit.parse(text).unwrap()
    except (TOMLKitError, ValueError) as error:
        raise SpecError((), f"this is not TOML: {str(error).partition(' at line ')[0]}") from error
    return values


def read_toml(path: Path) -> dict[str, Any]:
    """Plain values of a spec's file.

    Raises:
        SpecError: it is not TOML; without keys.
        BenchError: it cannot be read.
    """
    return parse_toml(_text_of(path))


@contextmanager
def located(path: Path) -> Iterator[None]:
    """Add file and line to every error of a SpecError: for what reads the spec at `path` or draws from it."""
    try:
        yield
    except SpecError as error:
        text = _text_of(path)
        found = sorted(((line_of(text, each.keys), str(each)) for each in error.errors), key=lambda it: it[0])
        raise BenchError("\n".join(f"{path}:{line}: {each}" for line, each in found)) from error


def line_of(text: str, keys: Sequence[str | int]) -> int:
    """Line (from 1) of the key, else of the innermost table around it that is there, else 1.

    Without keys, and where the text is no TOML, it is where the bad statement begins. The parser gives no
    positions, so it is asked: a statement ends on the first line up to which the text parses and has the key,
    and begins after the longest shorter text that parses. A key inside a value of several lines gets the line
    where the value's statement begins. It parses the text once a line, so it is for errors only.
    """
    good = _good_prefixes(text)
    if not keys and good[-1][0] < text.count("\n") + 1:
        return good[-1][0] + 1
    for length in range(len(keys), 0, -1):
        for (before, _), (_, values) in pairwise(good):
            if _has(values, keys[:length]):
                return before + 1
    return 1


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # editors on Windows put a byte order mark
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise BenchError(f"{path}: the spec cannot be read: {reason}; give a TOML file") from error


@lru_cache(maxsize=1)  # a spec with several errors is asked for each
def _good_prefixes(text: str) -> list[tuple[int, dict[str, Any]]]:
    """Numbers of first lines that parse by themselves, and what they parse to; no lines always do."""
    lines = text.split("\n")
    good = []
    for number in range(len(lines) + 1):
        try:
            good.append((number, parse_toml("\n".join([*lines[:number], ""]))))
        except SpecError:
            continue
    return good


def _has(values: Any, keys: Sequence[str | int]) -> bool:
    try:
        reduce(getitem, keys, values)
    except (LookupError, TypeError):
        return False
    return True
