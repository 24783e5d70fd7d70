"""The reference of all keys in docs/benchmark.md is the one that is made from the dataclasses."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

from sglang_layered_lab.bench.spec import BenchSpec
from sglang_layered_lab.bench.spec_keys import hints_of, keys_of
from sglang_layered_lab.bench.spec_reference import DOCUMENT, END, START, with_reference
from sglang_layered_lab.bench.spec_values import options_of
from sglang_layered_lab.bench.sweep_spec import Arm, SweepSettings

ROOT = Path(__file__).resolve().parents[2]


def kinds(kind: Any) -> set[Any]:
    """A dataclass and those within it."""
    inner = [
        option for hint in hints_of(kind).values() for option in options_of(hint) if is_dataclass(option)
    ]
    return {kind}.union(*map(kinds, inner))


def test_making_it_again_changes_nothing() -> None:
    text = (ROOT / DOCUMENT).read_text()
    assert text.count(START) == text.count(END) == 1
    assert with_reference(text) == text, "run `python -m sglang_layered_lab.bench.spec_reference`"


@pytest.mark.parametrize("kind", sorted(kinds(BenchSpec) - {BenchSpec} | {Arm, SweepSettings}, key=str))
def test_every_key_says_what_it_means_and_every_number_has_both_ends(kind: Any) -> None:
    keys = keys_of(kind)
    assert [item.name for item in fields(kind)] == list(keys)
    for name, key in keys.items():
        assert key.text, name
        options = options_of(hints_of(kind)[name])
        if {int, float} & set(options):
            assert key.unit and key.most is not None and (key.least is not None or key.above is not None), (
                name
            )
