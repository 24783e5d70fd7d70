"""Which data type and size the quickstart takes, and that the server is told."""

from __future__ import annotations

from itertools import pairwise

import pytest
from rich.console import Console

from sglang_layered_lab.quickstart import SIZES, run
from sglang_layered_lab.quickstart.machine import BFLOAT16, FLOAT32, FLOAT32_GIB, Machine, fastest, size_for


@pytest.mark.parametrize(
    ("machine", "dtype", "says"),
    [
        (Machine(is_fast=True, free_gib=4.0), BFLOAT16, None),
        (Machine(is_fast=False, free_gib=FLOAT32_GIB), FLOAT32, "several times faster"),
        (Machine(is_fast=False, free_gib=4.0), BFLOAT16, "slow"),
    ],
)
def test_the_fastest_data_type_that_fits(machine: Machine, dtype: str, says: str | None) -> None:
    found, why = fastest(machine)
    assert found == dtype
    assert not why if says is None else says in why


@pytest.mark.parametrize(("is_fast", "size"), [(True, "full"), (False, "half")])
def test_slow_cpus_get_shorter_prompts_and_are_told(is_fast: bool, size: str) -> None:
    found, why = size_for(Machine(is_fast, free_gib=32.0))
    assert found == size and found in SIZES
    assert not why if size == "full" else str(SIZES["half"]) in why


def test_what_is_asked_for_is_taken_and_a_choice_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    old = Machine(is_fast=False, free_gib=32.0)
    monkeypatch.setattr(Machine, "here", lambda: old)
    console = Console(record=True)
    assert run.chosen(BFLOAT16, "full", console) == (BFLOAT16, "full")
    assert console.export_text(clear=False) == ""
    assert run.chosen("auto", "auto", console) == (FLOAT32, "half")
    told = console.export_text()
    assert "no bfloat16" in told and "--size full" in told


def test_this_machine_has_an_answer() -> None:
    """The one PyTorch name that is not public is still there."""
    machine = Machine.here()
    assert isinstance(machine.is_fast, bool) and machine.free_gib > 0
    assert fastest(machine)[0] in (BFLOAT16, FLOAT32)


def test_every_server_is_told_the_data_type() -> None:
    for cell in run.scenario(dtype=FLOAT32).cells:
        flags = cell.spec.server.flags
        assert [after for flag, after in pairwise(flags) if flag == "--dtype"][-1] == FLOAT32
