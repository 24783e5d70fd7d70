"""How keys of a spec are declared: each with its meaning, its unit and its ends, in one place.

A field says it in its type: `rate_per_s: Annotated[float, as_rate("after the ramp")]`. The checks, their
errors and the reference in docs/benchmark.md are made from that. Knows no single field.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from typing import Any, ClassVar, TypeVar, dataclass_transform

from pydantic import AfterValidator, ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from sglang_layered_lab.bench.spec_errors import SpecError, did_you_mean, errors_of, raise_all

T = TypeVar("T", bound="Section")

# Greatest numbers that a run can hold. They are far above what is of use: what they keep out never ends.
MOST_REQUESTS = 1_000_000
MOST_TOKENS = 10_000_000  # of one prompt or output
MOST_S = 30 * 86_400.0
MOST_RATE = 1e6  # requests per second
MOST_FACTOR = 1e6
MOST_SEED = 2**63 - 1


def meaning(text: str, unit: str = "", **ends: Any) -> Any:
    """A key that means `text`; a number has a unit, as an error asks for it, and ends: ge, gt, le."""
    strict = True if ends else None  # no text or boolean for a number
    return Field(description=text, json_schema_extra={"unit": unit}, strict=strict, **ends)


def in_seconds(text: str, *, can_be_zero: bool = False) -> Any:
    """A time."""
    return meaning(text, "seconds", **{"ge" if can_be_zero else "gt": 0}, le=MOST_S)


def in_ms(text: str) -> Any:
    """A limit of a time."""
    return meaning(text, "milliseconds", gt=0, le=1e9)


def in_tokens(text: str, least: int = 1) -> Any:
    """A number of tokens of one request."""
    return meaning(text, "tokens", ge=least, le=MOST_TOKENS)


def count_of(what: str, text: str, *, least: int = 1, most: int = MOST_REQUESTS) -> Any:
    """A count."""
    return meaning(text, f"a number of {what}", ge=least, le=most)


def as_factor(text: str) -> Any:
    """What something is multiplied by."""
    return meaning(text, "a factor", ge=1 / MOST_FACTOR, le=MOST_FACTOR)


def as_rate(text: str, *, can_be_zero: bool = False) -> Any:
    """A request rate."""
    return meaning(text, "requests per second", **{"ge" if can_be_zero else "gt": 0}, le=MOST_RATE)


def as_seed(text: str) -> Any:
    """The seed of random numbers."""
    return meaning(text, "a whole number", ge=0, le=MOST_SEED)


def one_of(names: Iterable[str]) -> AfterValidator:
    """Refuse another word than these."""
    known = list(names)

    def check(given: str) -> str:
        if given not in known:
            raise SpecError((), f"{given!r} is unknown; {did_you_mean(given, known)}")
        return given

    return AfterValidator(check)


@AfterValidator
def file_name(given: str) -> str:
    """Refuse what no file can be called."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}", given):
        raise SpecError(
            (), f"{given!r} makes no file name; use letters, digits and . _ - after the first, 200 at most"
        )
    return given


class Section:
    """A table of a spec, checked whenever it is made or copied."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def __post_init__(self) -> None:
        """Check how keys go together; each is good by itself.

        Raises:
            SpecError: with all that was found.
        """
        raise_all(self.problems())

    def problems(self) -> Iterator[SpecError]:
        """Give what is wrong beside single keys."""
        yield from ()


@dataclass_transform(frozen_default=True)
def section(kind: type[T]) -> type[T]:
    """Make the class a frozen pydantic dataclass that knows no other keys and raises SpecError."""
    config = ConfigDict(extra="forbid", allow_inf_nan=False)
    made: Any = dataclass(kind, frozen=True, config=config)
    init: Callable[..., None] = made.__init__

    @wraps(init)
    def checked_init(self: T, *args: Any, **values: Any) -> None:
        try:
            init(self, *args, **values)
        except ValidationError as error:
            raise_all(errors_of(error, made))

    made.__init__ = checked_init
    return made  # type: ignore[no-any-return]
