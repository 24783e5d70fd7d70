"""Policies that come from papers, on the real scheduler with the exact model: asked, and no token changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from exact_swap import exact_scheduler
from harness import SteppedScheduler
from prompts import prompt
from sglang_layered.core.events import StepDone
from sglang_layered.core.questions import Snapshot

NUM_LAYERS = 7
ON = {"layered_max_parked": 1, "slo_ttft_ms": 1e6, "layered_group_tokens": 64}


def noting(heard: set[str], question: str, ask: Callable[[Snapshot], Any]) -> Callable[[Snapshot], Any]:
    def noted(view: Snapshot) -> Any:
        heard.add(question)
        return ask(view)

    return noted


@pytest.mark.parametrize(
    "name, tbt_ms, asked",
    [
        ("flow-prefill", 0.001, {"order", "preempt"}),  # a layer a step
        ("fair-batching", 1e6, {"decode_rows"}),  # everybody has time
        ("near-late", 1e6, {"order", "decode_rows"}),
        ("staggered", 1e6, {"hold"}),
    ],
)
def test_it_answers_and_every_request_has_its_tokens(
    stepped: SteppedScheduler, name: str, tbt_ms: float, asked: set[str]
) -> None:
    with exact_scheduler(stepped, NUM_LAYERS, layered_policy=name, slo_tbt_ms=tbt_ms, **ON) as exact:
        exact.answers_may_wait(1000)
        policy, heard = exact.stepped.loop.controls.policy, set()
        for question in asked:
            setattr(policy, question, noting(heard, question, getattr(policy, question)))
        rids = [exact.send(prompt(10 + seed, seed), 20) for seed in range(3)]
        exact.step(4)
        rids.append(exact.send(prompt(400, 4), 3))
        exact.step(2)
        rids += [exact.send(prompt(12, 5), 3), exact.send(prompt(300, 6), 3)]
        exact.finish(*rids)
        assert heard == asked
        events = exact.stepped.events
        assert any(isinstance(each, StepDone) and each.decision is not None for each in events)
        exact.settle()
