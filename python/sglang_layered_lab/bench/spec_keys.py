"""What a key of a spec means, its unit, and which numbers it takes: written once, at the field.

A field says it in its type: `rate: Annotated[float, Key("requests per second", "the rate", above=0)]`. The
checks and the reference in docs/benchmark.md are made from that. Knows no single field.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, cast, get_type_hints

from sglang_layered_lab.bench.spec_errors import SpecError, raise_all

# Greatest numbers that a run can hold. They are far above what is of use: what they keep out never ends.
MOST_REQUESTS = 1_000_000
MOST_TOKENS = 10_000_000  # of one prompt or output
MOST_S = 30 * 86_400.0
MOST_RATE = 1e6  # requests per second
MOST_FACTOR = 1e6
MOST_SEED = 2**63 - 1
MOST_ID = 2**31  # token ids are of 32 bits


@dataclass(frozen=True, slots=True)
class Key:
    """What one field holds. `unit` is how an error asks for a number: "give seconds, above 0"."""

    unit: str  # empty: no number
    text: str
    least: float | None = None
    above: float | None = None
    most: float | None = None

    def problem(self, value: float) -> str | None:
        """What is wrong with a number; not a number itself is out of every range."""
        too_low = self.above is not None and not value > self.above
        if too_low or (self.least is not None and not value >= self.least):
            limit = f"above {self.above:g}" if self.least is None else f"{self.least:g} or more"
        elif self.most is not None and not value <= self.most:
            limit = f"at most {self.most:,.10g}"
        else:
            return None
        shown = value if isinstance(value, int) else format(value, "g")
        return f"{shown} is out of range; give {self.unit}, {limit}"

    @property
    def range(self) -> str:
        """The unit and the lower end, for the reference."""
        if self.above is not None:
            return f"{self.unit}, above {self.above:g}"
        return f"{self.unit}, from {self.least:g}" if self.least is not None else self.unit


def in_seconds(text: str, *, can_be_zero: bool = False) -> Key:
    """A time."""
    return _amount("seconds", text, MOST_S, can_be_zero)


def in_tokens(text: str, least: int = 1) -> Key:
    """A number of tokens of one request."""
    return Key("tokens", text, least=least, most=MOST_TOKENS)


def count_of(what: str, text: str, *, least: int = 1, most: int = MOST_REQUESTS) -> Key:
    """A count."""
    return Key(f"a number of {what}", text, least=least, most=most)


def as_factor(text: str) -> Key:
    """What something is multiplied by."""
    return Key("a factor", text, least=1 / MOST_FACTOR, most=MOST_FACTOR)


def as_rate(text: str, *, can_be_zero: bool = False) -> Key:
    """A request rate."""
    return _amount("requests per second", text, MOST_RATE, can_be_zero)


def as_seed(text: str) -> Key:
    """The seed of random numbers."""
    return Key("a whole number", text, least=0, most=MOST_SEED)


def plain(text: str) -> Key:
    """A key that is no number."""
    return Key("", text)


def _amount(unit: str, text: str, most: float, can_be_zero: bool) -> Key:
    return Key(unit, text, least=0, most=most) if can_be_zero else Key(unit, text, above=0, most=most)


@cache
def hints_of(kind: Any) -> Mapping[str, Any]:
    """Types of a dataclass's fields, what is annotated to them included."""
    return get_type_hints(kind, include_extras=True)


def keys_of(kind: type[Any]) -> Mapping[str, Key]:
    """Every field's `Key`, where it has one, in the order of the fields."""
    hints = hints_of(cast(Any, kind))
    found = {}
    for item in fields(cast(Any, kind)):
        key = next(
            (each for each in getattr(hints[item.name], "__metadata__", ()) if type(each) is Key), None
        )
        if key is not None:
            found[item.name] = key
    return found


def bad_numbers(kind: type[Any], values: Mapping[str, Any]) -> Iterator[SpecError]:
    """Give an error for each number that its key does not take; tuples are looked into."""
    for name, key in keys_of(kind).items():
        value = values.get(name)
        several = isinstance(value, tuple)
        for index, each in enumerate(value if isinstance(value, tuple) else (value,)):
            if key.unit and isinstance(each, int | float) and (problem := key.problem(each)):
                yield SpecError((name, index) if several else (name,), problem)


class Checked:
    """A dataclass of a spec: every problem of its fields is raised at once, when it is made or copied."""

    __slots__ = ()

    def __post_init__(self) -> None:
        """Check the numbers, then what `problems` adds.

        Raises:
            SpecError: with all that was found.
        """
        names = keys_of(type(self))
        raise_all([*bad_numbers(type(self), {name: getattr(self, name) for name in names}), *self.problems()])

    def problems(self) -> Iterator[SpecError]:
        """Give what is wrong beside single numbers; fields may hold bad ones here."""
        yield from ()
