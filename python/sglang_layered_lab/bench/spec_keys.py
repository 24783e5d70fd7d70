"""How keys of a spec are declared: each with its meaning, its unit and its ends, in one place.

A field says it in its type: `rate_per_s: Annotated[Rate, "after the ramp"]`. The checks, their errors and the
reference in docs/benchmark.md are made from that. Knows no single field.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from typing import Annotated, Any, ClassVar, TypeVar, dataclass_transform

from annotated_types import Ge, Gt, Le
from pydantic import AfterValidator, ConfigDict, Strict, ValidationError
from pydantic.dataclasses import dataclass

from sglang_layered_lab.bench.spec_errors import SpecError, Unit, did_you_mean, errors_of, raise_all

T = TypeVar("T", bound="Section")

# Greatest numbers that a run can hold. They are far above what is of use: what they keep out never ends.
MOST_REQUESTS = 1_000_000
MOST_TOKENS = 10_000_000  # of one prompt or output
MOST_S = 30 * 86_400.0
MOST_RATE = 1e6  # requests per second
MOST_FACTOR = 1e6

Whole = Annotated[int, Strict()]  # no text or boolean for a number
Number = Annotated[float, Strict()]
Seconds = Annotated[Number, Unit("seconds"), Gt(0), Le(MOST_S)]
SecondsOr0 = Annotated[Number, Unit("seconds"), Ge(0), Le(MOST_S)]
Milliseconds = Annotated[Number, Unit("milliseconds"), Gt(0), Le(1e9)]
Rate = Annotated[Number, Unit("requests per second"), Gt(0), Le(MOST_RATE)]
RateOr0 = Annotated[Number, Unit("requests per second"), Ge(0), Le(MOST_RATE)]
Factor = Annotated[Number, Unit("a factor"), Ge(1 / MOST_FACTOR), Le(MOST_FACTOR)]
Tokens = Annotated[Whole, Unit("tokens"), Ge(1), Le(MOST_TOKENS)]  # of one request
Tokens2 = Annotated[Whole, Unit("tokens"), Ge(2), Le(MOST_TOKENS)]
MeanTokens = Annotated[Number, Unit("tokens"), Ge(1), Le(MOST_TOKENS)]
TokenId = Annotated[Whole, Unit("a token id"), Ge(0), Le(2**31)]  # ids are of 32 bits
Count = Annotated[Whole, Unit("a count"), Ge(1), Le(MOST_REQUESTS)]
CountOr0 = Annotated[Whole, Unit("a count"), Ge(0), Le(MOST_REQUESTS)]
Few = Annotated[Whole, Unit("a count"), Ge(1), Le(10_000)]
Open = Annotated[Whole, Unit("a count"), Ge(1), Le(65_536)]  # streams and clients: a connection each
Shape = Annotated[Number, Unit("the shape of the gamma distribution"), Gt(0), Le(1e3)]
Part = Annotated[Number, Unit("a part"), Ge(0), Le(1)]
Seed = Annotated[Whole, Unit("a whole number"), Ge(0), Le(2**63 - 1)]


def choice(names: Iterable[str]) -> AfterValidator:
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
