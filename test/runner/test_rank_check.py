"""Ranks that would run different steps all stop before they do."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from harness import SteppedScheduler
from prompts import prompt
from release_differences import ranks_of_stand_ins as ranks_of_stand_ins
from sglang_layered.errors import InvariantError
from sglang_layered.scheduler.invariants import RankCheck, describe


def two_ranks() -> SimpleNamespace:
    return SimpleNamespace(ps=SimpleNamespace(tp_size=2, tp_rank=1), tp_cpu_group="tp group")


@pytest.fixture
def other_rank(monkeypatch: pytest.MonkeyPatch, ranks_of_stand_ins: None) -> list[int]:
    """Digests that the other rank sends, one a step; 0 stands for the same as this rank's."""
    sent: list[int] = []

    def all_gather(digests: list[torch.Tensor], mine: torch.Tensor, group: object) -> None:
        assert group == "tp group"
        other = sent.pop(0)
        digests[0].fill_(other if other else int(mine))
        digests[1].copy_(mine)

    monkeypatch.setattr(torch.distributed, "all_gather", all_gather)
    return sent


def test_equal_steps_pass_and_a_different_one_stops_every_rank(other_rank: list[int]) -> None:
    check = RankCheck(two_ranks(), "full")
    other_rank += [0, 12345]
    check.compare(None)
    with pytest.raises(InvariantError, match="rank 1 has nothing"):
        check.compare(None)


def test_nothing_is_sent_with_one_rank_or_at_the_basic_level(other_rank: list[int]) -> None:
    RankCheck(two_ranks(), "basic").compare(None)
    alone = SimpleNamespace(ps=SimpleNamespace(tp_size=1, tp_rank=0), tp_cpu_group=None)
    RankCheck(alone, "strict").compare(None)
    assert other_rank == []


def test_what_a_step_would_run_is_all_in_its_description(stepped: SteppedScheduler) -> None:
    seen: list[str] = []
    compare = stepped.loop._ranks.compare
    stepped.loop._ranks.is_on = True
    stepped.loop._ranks.compare = lambda step: seen.append(describe(step))  # type: ignore[method-assign]
    try:
        first = stepped.send(prompt(10, 1), 20)
        stepped.step(2)
        second = stepped.send(prompt(300, 2), 3)
        stepped.finish(first, second)
    finally:
        stepped.loop._ranks.is_on = False
        stepped.loop._ranks.compare = compare  # type: ignore[method-assign]
    assert seen[0] == f"EXTEND ['{first}'] rows [10]"
    assert seen[1] == f"DECODE ['{first}'] rows []"
    layered = [text for text in seen if text.startswith("layers")]
    assert len(set(layered)) == len(layered) == 5
    assert all(first in text and second in text for text in layered)
