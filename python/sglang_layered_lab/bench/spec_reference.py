"""Every key of a spec with its type, unit, default and meaning, as Markdown: made from the dataclasses.

docs/benchmark.md has it between two markers; `python -m sglang_layered_lab.bench.spec_reference` writes it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from annotated_types import Ge, Gt
from pydantic.fields import FieldInfo

from sglang_layered_lab.bench.spec import BenchSpec
from sglang_layered_lab.bench.spec_errors import fields_of, marks_of, meaning_of, name_of, options_of, unit_of
from sglang_layered_lab.bench.sweep_spec import Arm, SweepSettings
from sglang_layered_lab.bench.tables import to_markdown

DOCUMENT = Path("docs") / "benchmark.md"
START, END = (
    "<!-- keys: made by python -m sglang_layered_lab.bench.spec_reference -->",
    "<!-- end of keys -->",
)
HEADER = ("key", "type", "unit", "default", "meaning")
OF_SWEEPS = (("sweep", SweepSettings), ("arms", Arm))


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


def _rows(kind: Any, prefix: str) -> Iterator[tuple[str, ...]]:
    for name, field in fields_of(kind).items():
        options = options_of(field.annotation)
        if meaning_of(field):
            types = " or ".join(name_of(option).removesuffix(" in quotes") for option in options)
            yield f"`{prefix}{name}`", types, _unit_and_least(field), _default(field), meaning_of(field)
        for table in filter(is_dataclass, options):
            yield from _rows(table, f"{prefix}{name}.")


def _unit_and_least(field: FieldInfo) -> str:
    least = [f"from {each.ge:g}" for each in marks_of(field) if isinstance(each, Ge)]
    least += [f"above {each.gt:g}" for each in marks_of(field) if isinstance(each, Gt)]
    return ", ".join([unit_of(field), *least])


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
