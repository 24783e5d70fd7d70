"""What is wrong with a spec: at which key, on which line of the file, and what to write instead.

Pydantic finds what is wrong; here it becomes sentences. Knows no single field.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import is_dataclass
from difflib import get_close_matches
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import tomlkit
from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from tomlkit.exceptions import TOMLKitError

from sglang_layered.errors import BenchError

T = TypeVar("T")
Keys = tuple[str | int, ...]
NAMES = {str: "text in quotes", bool: "true or false", int: "a whole number", float: "a number"}
LIMITS = {"ge": "{:g} or more", "gt": "above {:g}", "le": "at most {:,.10g}"}


class SpecError(BenchError, ValueError):
    """Fields of a spec are bad.

    `keys` is the path of the first: names of tables, then the key, with indices of lists and arrays of
    tables. `problem` says what is wrong with it and what to write instead. `errors` are all, each by itself.
    """

    def __init__(self, keys: Sequence[str | int], problem: str, others: Sequence[SpecError] = ()) -> None:
        self.keys, self.problem = tuple(keys), problem
        text = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys).removeprefix(".")
        own = f"{text}: {problem}" if text else problem
        super().__init__("\n".join([own, *map(str, others)]))
        self.errors: tuple[SpecError, ...] = (SpecError(keys, problem), *others) if others else (self,)


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


def checked(kind: Any, values: Any) -> Any:
    """Make `kind`, a section or a type that holds sections, of plain values.

    Raises:
        SpecError: unknown or missing keys, values of another type or out of range, all at once. How keys go
            together is looked at when each is good: it would follow from a bad one.
    """
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        raise_all(errors_of(error, kind))
        raise


def errors_of(error: ValidationError, kind: Any) -> list[SpecError]:
    """What pydantic found in a value of this kind, as sentences."""
    found: list[SpecError] = []
    missing: list[Keys] = []
    intended: set[Keys] = set()  # missing keys that an unknown one stands for
    for each in error.errors(include_url=False):
        keys, cause = each["loc"], each.get("ctx", {}).get("error")
        if isinstance(cause, SpecError):
            found += [SpecError((*keys, *inner.keys), inner.problem) for inner in cause.errors]
        elif each["type"] in ("too_long", "missing") and isinstance(each["input"], list | tuple):
            keys = keys if each["type"] == "too_long" else keys[:-1]  # an item is missing
            wanted = len(get_args(options_of(_walk(kind, keys)[0])[0]))
            found.append(SpecError(keys, f"it has {len(each['input'])} values; give a list of {wanted}"))
        elif each["type"] == "missing":
            missing.append(keys)
        elif each["type"] in ("unexpected_keyword_argument", "is_instance_of"):
            known = [name for name, field in _fields_at(kind, keys[:-1]).items() if not field.exclude]
            intended |= {(*keys[:-1], name) for name in meant(str(keys[-1]), known)}
            found.append(SpecError(keys, f"unknown key; {did_you_mean(str(keys[-1]), known)}"))
        else:
            found.append(SpecError(keys, _problem(kind, each)))
    return found + [SpecError(keys, "is missing; add it") for keys in missing if keys not in intended]


def _problem(kind: Any, each: Any) -> str:
    value, context = each["input"], each.get("ctx", {})
    hint, field = _walk(kind, each["loc"])
    for name in LIMITS.keys() & context.keys():
        shown = value if isinstance(value, int) else format(value, "g")
        limit = LIMITS[name].format(context[name])
        return f"{shown} is out of range; give {unit_of(field) if field else 'a number'}, {limit}"
    wanted = " or ".join(map(name_of, options_of(hint)))
    return f"{value!r} is not {wanted}; give {wanted}"


class Unit(str):
    """What a field's number counts, as an error asks for it: "give seconds"."""

    __slots__ = ()


def marks_of(field: FieldInfo) -> list[Any]:
    """Everything that is annotated to a field or to a type that it may have: ends, unit, meaning."""
    inner = [each for option in get_args(field.annotation) for each in getattr(option, "__metadata__", ())]
    return [*field.metadata, *inner]


def unit_of(field: FieldInfo) -> str:
    """The field's unit, "" without one."""
    return next((each for each in marks_of(field) if isinstance(each, Unit)), "")


def meaning_of(field: FieldInfo) -> str:
    """What the field means, "" where it is a section of its own."""
    return next((each for each in field.metadata if type(each) is str), "")


def options_of(hint: Any) -> tuple[Any, ...]:
    """Types that a hint allows. Not None: TOML has none, an absent key stands for it."""
    if get_origin(hint) is Annotated:
        return options_of(get_args(hint)[0])
    if get_origin(hint) in (Union, UnionType):
        return tuple(each for option in get_args(hint) for each in options_of(option) if each is not NoneType)
    return (hint,)


def name_of(option: Any) -> str:
    """How people call a type: `a number`, `a list`."""
    return "a list" if get_origin(option) is tuple else NAMES.get(option, "a table")


def fields_of(kind: Any) -> dict[str, FieldInfo]:
    """The keys of a section, in order."""
    fields: dict[str, FieldInfo] = kind.__pydantic_fields__
    return fields


def _walk(hint: Any, keys: Sequence[str | int]) -> tuple[Any, FieldInfo | None]:
    """Type of what stands at the path in a value of type `hint`, and the last section's field on the way."""
    field = None
    for key in keys:
        for option in options_of(hint):
            if is_dataclass(option) and key in fields_of(option):
                field = fields_of(option)[str(key)]
                hint = field.annotation
            elif get_origin(option) in (tuple, dict):
                hint = get_args(option)[0 if get_origin(option) is tuple else 1]
    return hint, field


def _fields_at(kind: Any, keys: Sequence[str | int]) -> dict[str, FieldInfo]:
    return next(fields_of(each) for each in options_of(_walk(kind, keys)[0]) if is_dataclass(each))


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


def text_of(path: Path) -> str:
    """Text of a spec's file.

    Raises:
        BenchError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8-sig")  # editors on Windows put a byte order mark
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise BenchError(f"{path}: the spec cannot be read: {reason}; give a TOML file") from error


@contextmanager
def located(path: Path) -> Iterator[None]:
    """Add file and line to every error of a SpecError: for what reads the spec at `path` or draws from it."""
    try:
        yield
    except SpecError as error:
        text = text_of(path)
        found = [(line_of(text, each.keys), str(each)) for each in error.errors]
        found.sort(key=lambda each: each[0])
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
        try:
            values = values[key]
        except (KeyError, IndexError, TypeError):
            return False
    return True
