"""On which line of a TOML text a key stands, for error messages.

The library gives no positions, so the parser itself is asked: a statement ends on the first line up to which
the text parses and has the key, and it begins after the longest shorter text that parses. This holds for
dotted keys, inline tables, arrays of tables and values over several lines. A key inside such a value gets the
line where the statement begins. It parses the text once a line, so it is for errors only.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError

from sglang_layered_lab.bench.spec_errors import SpecError


def parse_toml(text: str) -> dict[str, Any]:
    """Parse the text into plain values.

    Raises:
        SpecError: it is not TOML; without keys.
    """
    try:
        values: dict[str, Any] = tomlkit.parse(text).unwrap()
    except (TOMLKitError, ValueError) as error:
        reason = str(error).partition(" at line ")[0]
        raise SpecError((), f"this is not TOML: {reason}") from error
    return values


def line_of(text: str, keys: Sequence[str | int]) -> int:
    """Line (from 1) of the key, else of the innermost table around it that is there, else 1."""
    good = _good_prefixes(text)
    for length in range(len(keys), 0, -1):
        for (before, _), (_, values) in pairwise(good):
            if _has(values, keys[:length]):
                return before + 1
    return 1


def line_of_bad_statement(text: str) -> int:
    """Line (from 1) where the statement begins that makes the text no TOML."""
    return _good_prefixes(text)[-1][0] + 1


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
    for key in keys:
        inside = key < len(values) if isinstance(key, int) and isinstance(values, list) else _in(values, key)
        if not inside:
            return False
        values = values[key]
    return True


def _in(values: Any, key: str | int) -> bool:
    return isinstance(values, dict) and key in values
