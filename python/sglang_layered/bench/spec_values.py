"""Plain values of TOML or JSON into the dataclasses of a spec, by their type hints. Knows no single field."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from math import isfinite
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from sglang_layered.bench.spec_errors import SpecError, did_you_mean

T = TypeVar("T")
Keys = tuple[str | int, ...]
SCALARS = {str: "text in quotes", bool: "true or false", int: "a whole number", float: "a number"}


def build(kind: type[T], table: Mapping[str, Any], keys: Keys = ()) -> T:
    """Make the dataclass `kind` of a table; `keys` is the table's own path.

    Raises:
        SpecError: an unknown or missing key, a value of another type, or one that the dataclass refuses.
    """
    members = {item.name: item for item in fields(cast(Any, kind)) if item.metadata.get("in_file", True)}
    for name in table:
        if name not in members:
            raise SpecError((*keys, name), f"unknown key; {did_you_mean(name, members)}")
    for name, item in members.items():
        if name not in table and item.default is MISSING and item.default_factory is MISSING:
            raise SpecError((*keys, name), "is missing; add it")
    hints = get_type_hints(kind)
    values = {name: convert(hints[name], value, (*keys, name)) for name, value in table.items()}
    try:
        return kind(**values)
    except SpecError as error:
        raise error.below(*keys) from error


def convert(hint: Any, value: Any, keys: Keys) -> Any:
    """Check one value against its type hint and make it what the hint says; whole numbers pass as float."""
    options = _options(hint)
    for option in options:
        if _fits(option, value):
            return _converted(option, value, keys)
    wanted = " or ".join(_name(option) for option in options)
    raise SpecError(keys, f"{value!r} is not {wanted}; give {wanted}")


def _options(hint: Any) -> tuple[Any, ...]:
    """Types that a hint allows. Not None: TOML has none, an absent key stands for it."""
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
        return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
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
        return {str(key): convert(inner, each, (*keys, key)) for key, each in value.items()}
    return option(value)


def _tuple(inner: tuple[Any, ...], value: list[Any], keys: Keys) -> tuple[Any, ...]:
    hints = [inner[0]] * len(value) if inner[-1] is Ellipsis else list(inner)
    if len(value) != len(hints):
        raise SpecError(keys, f"it has {len(value)} values; give a list of {len(hints)}")
    pairs = zip(hints, value, strict=True)
    return tuple(convert(hint, each, (*keys, index)) for index, (hint, each) in enumerate(pairs))


def _name(option: Any) -> str:
    if get_origin(option) is tuple:
        return "a list"
    return SCALARS.get(option, "a table")
