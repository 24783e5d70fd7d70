"""The reference of all keys in docs/benchmark.md is the one that is made from the dataclasses."""

from __future__ import annotations

from dataclasses import is_dataclass
from typing import Any

import pytest

from sglang_layered_lab.bench.spec import BenchSpec
from sglang_layered_lab.bench.spec_keys import Unit
from sglang_layered_lab.bench.sweep_spec import Arm, SweepSettings
from spec_reference import DOCUMENT, END, START, fields_of, mark_of, marks_of, options_of, with_reference


def kinds(kind: Any) -> set[Any]:
    """A section and those within it."""
    inner = [
        option
        for each in fields_of(kind).values()
        for option in options_of(each.annotation)
        if is_dataclass(option)
    ]
    return {kind}.union(*map(kinds, inner))


def test_making_it_again_changes_nothing() -> None:
    text = DOCUMENT.read_text()
    assert text.count(START) == text.count(END) == 1
    assert with_reference(text) == text, "run scripts/spec-keys"


@pytest.mark.parametrize("kind", sorted(kinds(BenchSpec) - {BenchSpec} | {Arm, SweepSettings}, key=str))
def test_every_key_says_what_it_means_and_every_number_has_both_ends(kind: Any) -> None:
    for name, field in fields_of(kind).items():
        assert mark_of(field, str), name
        if {int, float} & set(options_of(field.annotation)):
            ends = {end for each in marks_of(field) for end in ("ge", "gt", "le") if hasattr(each, end)}
            assert mark_of(field, Unit) and "le" in ends and len(ends) == 2, name
