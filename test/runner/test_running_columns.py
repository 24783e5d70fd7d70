"""What a policy sees of the running requests: made when it is read, and the same whenever that is."""

from __future__ import annotations

from dataclasses import fields, replace
from math import nan
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sglang_layered.core.questions import Decode, Running, SloClass
from sglang_layered.scheduler.running_columns import RunningColumns

LIMITS = SloClass(2.0, 0.1)
NAMES = [field.name for field in fields(Running)]


class Times:
    """Stands in for who got a token when."""

    last_s: Any = 3.0

    def last_of(self, reqs: list[Any]) -> Any:
        return self.last_s


@pytest.fixture
def times() -> Times:
    return Times()


@pytest.fixture
def columns(times: Times) -> RunningColumns:
    return RunningColumns(8, lambda req: (req.arrived_s, LIMITS, 7), times)  # type: ignore[arg-type]


def requests(*prompt_tokens: int) -> list[Any]:
    return [SimpleNamespace(origin_input_ids=[0] * each, arrived_s=each / 10) for each in prompt_tokens]


def rows(shown: Running) -> list[Decode]:
    values = zip(*(getattr(shown, name).tolist() for name in NAMES), strict=True)
    return [Decode(*each[:4], SloClass(*each[4:6]), *each[6:]) for each in values]


def test_each_request_is_shown_by_its_slot(columns: RunningColumns, times: Times) -> None:
    times.last_s = np.array([3.0, nan])
    reqs, slots, kv_tokens = requests(10, 20), torch.tensor([5, 2]), torch.tensor([12, 20])
    expected = [
        Decode(13, 3, 4.0 - 1.0, 1.0, LIMITS, 7, 0),
        Decode(21, 1, 4.0 - 2.0, 2.0, LIMITS, 7, 0),  # no token is out yet
    ]
    assert rows(columns.of(reqs, slots, kv_tokens, 4.0)) == expected
    assert rows(columns.of(reqs[::-1], slots.flip(0), kv_tokens.flip(0), 4.0))[0].context_tokens == 21


def test_what_is_read_later_is_what_was_asked_about(columns: RunningColumns, times: Times) -> None:
    reqs, slots, kv_tokens = requests(10, 20), torch.tensor([5, 2]), torch.tensor([12, 20])
    columns.begin(1)
    columns.of(reqs, slots, kv_tokens, 4.0)
    columns.decode([0])
    columns.begin(2)
    read, kept = (columns.of(reqs, slots, kv_tokens, 4.0) for _ in range(2))
    assert read.sat_out.tolist() == [0, 1] and len(read) == 2
    before = rows(read)
    columns.decode([1])
    times.last_s = 5.0
    columns.of(requests(30, 40, 50), torch.tensor([2, 5, 6]), torch.tensor([30, 40, 50]), 9.0)
    columns.forget()
    assert rows(kept) == before


def test_slots_are_looked_at_again_when_they_come_in_another_tensor(columns: RunningColumns) -> None:
    reqs, kv_tokens = requests(10, 20), torch.tensor([12, 20])
    columns.of(reqs, torch.tensor([5, 2]), kv_tokens, 4.0)
    columns.begin(1)
    columns.decode([0])
    moved = columns.of(reqs, torch.tensor([2, 7]), kv_tokens, 4.0)
    assert moved.sat_out.tolist() == [0, 0] and moved.output_tokens.tolist() == [3, 1]


def test_it_is_a_running_like_any_other(columns: RunningColumns) -> None:
    shown = columns.of(requests(10), torch.tensor([5]), torch.tensor([12]), 4.0)
    assert replace(shown, priority=np.array([1])).context_tokens.tolist() == [13]
    assert not hasattr(shown, "no_column")
