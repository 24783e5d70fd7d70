"""How keys of a spec are declared: each with its meaning, its unit and its ends, in one place.

A field says it in its type: `rate_per_s: Annotated[Rate, "after the ramp"]`. The checks, their errors and the
reference in docs/benchmark.md are made from that. Knows no single field.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le, MinLen
from pydantic import ConfigDict, Field, Strict, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from sglang_layered_lab.bench.spec_errors import Keys, SpecError, did_you_mean, meant, raise_all

# Greatest numbers that a run can hold. They are far above what is of use: what they keep out never ends.
MOST_REQUESTS = 1_000_000
MOST_TOKENS = 10_000_000  # of one prompt or output
MOST_S = 30 * 86_400.0
MOST_RATE = 1e6  # requests per second
MOST_FACTOR = 1e6


class Unit(str):
    """What a field's number counts."""

    __slots__ = ()


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
Values = Annotated[list[Any], Strict(), MinLen(1)]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,199}$")]

KINDS = {  # what a value is not, by pydantic's type of the error
    "dataclass_type": "a table",
    "dict_type": "a table",
    "tuple_type": "a list",
    "list_type": "a list",
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a number",
    "string_type": "text in quotes",
    "bool_type": "true or false",
}
PROBLEMS = {
    "missing": "is missing; add it",
    "too_short": "is empty; give a list of values",
    "too_long": "it has {actual_length} values; give a list of {max_length}",
    "literal_error": "{value!r} is unknown; give {expected}",
    "string_pattern_mismatch": "{value!r} makes no file name; use letters, digits and . _ - after the first,"
    " 200 at most",
    "greater_than": "{value!r} is out of range; give more than {gt:g}",
    "greater_than_equal": "{value!r} is out of range; give {ge:g} or more",
    "less_than_equal": "{value!r} is out of range; give at most {le:,.10g}",
    **{kind: f"{{value!r}} is not {name}; give {name}" for kind, name in KINDS.items()},
}


def errors_of(error: ValidationError, known: Sequence[str] = ()) -> list[SpecError]:
    """What pydantic found, as sentences; `known` are the keys of the section where it looked."""
    found: list[SpecError] = []
    intended: set[str] = set()  # keys that an unknown one stands for: they are not missing as well
    for each in error.errors(include_url=False):
        keys, cause = each["loc"], each.get("ctx", {}).get("error")
        if isinstance(cause, SpecError):
            found += [SpecError((*keys, *inner.keys), inner.problem) for inner in cause.errors]
        elif each["type"] in ("unexpected_keyword_argument", "is_instance_of"):
            intended |= set(meant(str(keys[-1]), known))
            found.append(SpecError(keys, f"unknown key; {did_you_mean(str(keys[-1]), known)}"))
        else:
            values = {"value": each["input"], "msg": each["msg"], **each.get("ctx", {})}
            found.append(SpecError(keys, PROBLEMS.get(each["type"], "{msg}").format(**values)))
    doubled = {((name,), PROBLEMS["missing"]) for name in intended}
    return [each for each in found if (each.keys, each.problem) not in doubled]


def checked(kind: Any, values: Any) -> Any:
    """Make `kind`, a section or a type that holds sections, of plain values.

    Raises:
        SpecError: unknown or missing keys, values of another type or out of range, all at once. How keys go
            together is looked at when each is good: it would follow from a bad one.
    """
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        raise_all(errors_of(error))
        raise


@dataclass(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class Section:
    """A table of a spec, checked whenever it is made or copied.

    Raises:
        ValidationError: pydantic's, with a SpecError of everything; `checked` raises the SpecError itself.
    """

    def __post_init__(self) -> None:
        raise_all(SpecError(keys, problem) for keys, problem in self.problems())

    def problems(self) -> Iterator[tuple[Keys, str]]:
        """Give what is wrong beside single keys."""
        yield from ()

    @classmethod
    def names(cls) -> list[str]:
        """The keys that a file may have, in order."""
        return [name for name, field in cls.__pydantic_fields__.items() if not field.exclude]  # type: ignore[attr-defined]

    @model_validator(mode="wrap")
    @classmethod
    def _told(cls, values: Any, make: Any) -> Any:
        try:
            return make(values)
        except ValidationError as error:
            raise_all(errors_of(error, cls.names()))
            raise

    def _unfit(
        self, name: str, uses: Mapping[str, Sequence[str]], optional: Sequence[str] = ()
    ) -> Iterator[tuple[Keys, str]]:
        """Give keys that this kind does not use or lacks: `name` is the key of the kind, `uses` its keys."""
        kind = getattr(self, name)
        for key in dict.fromkeys(chain(*uses.values())):
            given = getattr(self, key) is not None
            if given and key not in uses[kind]:
                users = " or ".join(repr(each) for each, keys in uses.items() if key in keys)
                yield key, f"{name} = {kind!r} does not use it; remove it, or set {name} to {users}"
            if not given and key in uses[kind] and key not in optional:
                yield key, f"is missing; {name} = {kind!r} needs it"
