"""Every key of a spec with its type, unit, default and meaning, as Markdown: made from the dataclasses.

docs/benchmark.md has it between two markers; `scripts/spec-keys` writes it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt
from pydantic.fields import FieldInfo

from sglang_layered_lab.bench.spec import BenchSpec
from sglang_layered_lab.bench.spec_keys import Unit
from sglang_layered_lab.bench.sweep_spec import Arm, SweepSettings
from sglang_layered_lab.bench.tables import to_markdown

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "benchmark.md"
START, END = ("<!-- keys: made by scripts/spec-keys -->", "<!-- end of keys -->")
HEADER = ("key", "type", "unit", "default", "meaning")
OF_SWEEPS = (("sweep", SweepSettings), ("arms", Arm))
NAMES = {str: "text", bool: "true or false", int: "a whole number", float: "a number", tuple: "a list"}


def reference() -> str:
    """The tables: the sections of a bench spec, then what a sweep has beside them."""
    run = to_markdown(HEADER, list(_rows(BenchSpec, "")))
    sweep = to_markdown(HEADER, [row for prefix, kind in OF_SWEEPS for row in _rows(kind, f"{prefix}.")])
    return (
        f"{run}\n\nA sweep has `[sweep]`, `[[arms]]` and `[grid]` in the place of `[run]`; `grid` holds"
        f" dotted keys of\nthe table above, each with a list of values.\n\n{sweep}"
    )


def with_reference(text: str) -> str:
    """The document's text with the tables made anew between the markers."""
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n\n{reference()}\n\n{END}{after}"


def fields_of(kind: Any) -> dict[str, FieldInfo]:
    """The keys of a section, in order."""
    fields: dict[str, FieldInfo] = kind.__pydantic_fields__
    return {name: field for name, field in fields.items() if not field.exclude}


def marks_of(field: FieldInfo) -> list[Any]:
    """Everything that is annotated to a field or to a type that it may have: ends, unit, meaning."""
    inner = [each for option in get_args(field.annotation) for each in getattr(option, "__metadata__", ())]
    return [*field.metadata, *inner]


def mark_of(field: FieldInfo, kind: type[str]) -> str:
    """The field's unit or, of kind `str`, its meaning; "" without one."""
    return next((each for each in marks_of(field) if type(each) is kind), "")


def options_of(hint: Any) -> tuple[Any, ...]:
    """Types that a hint allows. Not None: TOML has none, an absent key stands for it."""
    if get_origin(hint) is Annotated:
        return options_of(get_args(hint)[0])
    if get_origin(hint) in (Union, UnionType):
        return tuple(each for option in get_args(hint) for each in options_of(option) if each is not NoneType)
    return (hint,)


def _name_of(option: Any) -> str:
    if get_origin(option) is Literal:
        return f"one of {', '.join(get_args(option))}"
    return NAMES.get(get_origin(option) or option, "a table")


def _rows(kind: Any, prefix: str) -> Iterator[tuple[str, ...]]:
    for name, field in fields_of(kind).items():
        options, meaning = options_of(field.annotation), mark_of(field, str)
        if meaning:
            types = " or ".join(map(_name_of, options))
            yield f"`{prefix}{name}`", types, _unit_and_least(field), _default(field), meaning
        for table in filter(is_dataclass, options):
            yield from _rows(table, f"{prefix}{name}.")


def _unit_and_least(field: FieldInfo) -> str:
    least = [f"from {each.ge:g}" for each in marks_of(field) if isinstance(each, Ge)]
    least += [f"above {each.gt:g}" for each in marks_of(field) if isinstance(each, Gt)]
    return ", ".join([mark_of(field, Unit), *least])


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "needed"
    value = field.get_default(call_default_factory=True)
    return "" if value is None else f"`{_toml(value)}`"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    return "[]" if value == () else f"{value:g}" if isinstance(value, float) else str(value)


def main() -> None:
    """Write the tables into the document."""
    DOCUMENT.write_text(with_reference(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
