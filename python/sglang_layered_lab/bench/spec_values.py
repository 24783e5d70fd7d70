"""Plain values of TOML or JSON into the dataclasses of a spec, by their type hints. Knows no single field."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, Union, cast, get_args, get_origin

from sglang_layered_lab.bench.spec_errors import SpecError, did_you_mean, gathered, meant, raise_all
from sglang_layered_lab.bench.spec_keys import bad_numbers, hints_of

T = TypeVar("T")
Keys = tuple[str | int, ...]
SCALARS = {str: "text in quotes", bool: "true or false", int: "a whole number", float: "a number"}


def build(kind: type[T], table: Mapping[str, Any], keys: Keys = ()) -> T:
    """Make the dataclass `kind` of a table; `keys` is the table's own path.

    Raises:
        SpecError: unknown or missing keys, values of another type, or what the dataclass refuses, all at
            once. How keys go together is looked at when each is good: it would follow from a bad one.
    """
    members = {item.name: item for item in fields(cast(Any, kind)) if item.metadata.get("in_file", True)}
    unknown = [name for name in table if name not in members]
    intended = {name for each in unknown for name in meant(each, members)}
    errors = [SpecError((*keys, name), f"unknown key; {did_you_mean(name, members)}") for name in unknown]
    for name, item in members.items():
        is_needed = item.default is MISSING and item.default_factory is MISSING
        if is_needed and name not in table and name not in intended:
            errors.append(SpecError((*keys, name), "is missing; add it"))
    hints = hints_of(cast(Any, kind))
    values = {}
    for name in members.keys() & table.keys():
        with gathered(errors):
            values[name] = convert(hints[name], table[name], (*keys, name))
    if errors:
        raise_all([*errors, *(each.below(*keys) for each in bad_numbers(kind, values))])
    try:
        return kind(**values)
    except SpecError as error:
        raise error.below(*keys) from error


def convert(hint: Any, value: Any, keys: Keys) -> Any:
    """Check one value against its type hint and make it what the hint says; whole numbers pass as float."""
    options = options_of(hint)
    for option in options:
        if _fits(option, value):
            return _converted(option, value, keys)
    wanted = " or ".join(name_of(option) for option in options)
    raise SpecError(keys, f"{value!r} is not {wanted}; give {wanted}")


def options_of(hint: Any) -> tuple[Any, ...]:
    """Types that a hint allows. Not None: TOML has none, an absent key stands for it."""
    if get_origin(hint) is Annotated:
        return options_of(get_args(hint)[0])
    if get_origin(hint) in (Union, UnionType):
        return tuple(option for option in get_args(hint) if option is not NoneType)
    return (hint,)


def _fits(option: Any, value: Any) -> bool:
    if option is Any:
        return True
    if get_origin(option) is tuple:
        return isinstance(value, list | tuple)
    if is_dataclass(option) or get_origin(option) is dict:
        return isinstance(value, Mapping)
    if option is float:
        return (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and abs(value) <= sys.float_info.max
        )
    return type(value) is option


def _converted(option: Any, value: Any, keys: Keys) -> Any:
    if option is Any:
        return value
    if is_dataclass(option):
        return build(cast(type[Any], option), value, keys)
    if get_origin(option) is tuple:
        return _tuple(get_args(option), value, keys)
    if get_origin(option) is dict:
        inner = get_args(option)[1]
        return dict(zip(map(str, value), _each([inner] * len(value), value.items(), keys), strict=True))
    return option(value)


def _tuple(inner: tuple[Any, ...], value: list[Any], keys: Keys) -> tuple[Any, ...]:
    hints = [inner[0]] * len(value) if inner[-1] is Ellipsis else list(inner)
    if len(value) != len(hints):
        raise SpecError(keys, f"it has {len(value)} values; give a list of {len(hints)}")
    return tuple(_each(hints, enumerate(value), keys))


def _each(hints: list[Any], items: Iterable[tuple[str | int, Any]], keys: Keys) -> list[Any]:
    """Convert every value of a table or a list; what is wrong with any of them is raised together."""
    errors: list[SpecError] = []
    values = []
    for hint, (name, value) in zip(hints, items, strict=True):
        with gathered(errors):
            values.append(convert(hint, value, (*keys, name)))
    raise_all(errors)
    return values


def name_of(option: Any) -> str:
    """How people call a type: `a number`, `a list`."""
    if get_origin(option) is tuple:
        return "a list"
    return SCALARS.get(option, "a table")
