"""Overtaking with policy auto: no step is longer than the limit, on a simulated clock."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from exact_scheduler import ExactScheduler
from exact_swap import exact_scheduler
from harness import SteppedScheduler
from prompts import prompt
from sglang_layered.scheduler import loop as loops
from sglang_layered.scheduler import rank_clock, results

NUM_LAYERS = 7
LIMIT_S = 0.045
FLAGS = {"layered_policy": "auto", "slo_tbt_ms": 1e3 * LIMIT_S, "layered_short_tokens": 64}


class SimulatedClock:
    """Steps take 10 ms, a tenth of one a decode row, and 20 us a prompt row and layer."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.steps_s: list[float] = []  # of those that somebody decodes in

    def monotonic(self) -> float:
        return self.now_s

    def passes(self, decode: Any, prompt_rows: int, num_layers: int) -> None:
        rows = 0 if decode is None else len(decode.reqs)
        step_s = 0.01 + 1e-4 * rows + 2e-5 * prompt_rows * num_layers
        self.now_s += step_s
        if rows:
            self.steps_s.append(step_s)


@pytest.fixture(params=[0, 1], ids=["in order", "short ones overtake"])
def paced(
    stepped: SteppedScheduler, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[ExactScheduler, SimulatedClock]]:
    clock = SimulatedClock()
    for module in (rank_clock, results):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=clock.monotonic))
    flags = FLAGS | {"layered_max_parked": request.param}
    with exact_scheduler(stepped, NUM_LAYERS, **flags) as exact:
        launch, run_stock = stepped.loop._launcher.launch, loops.run_stock

        def launching(step: Any, strategy: Any) -> Any:
            clock.passes(step.decode, step.inflight.num_prompt_tokens, step.group.num_layers)
            return launch(step, strategy)

        def running(scheduler: Any, batch: Any) -> Any:
            is_prompt = batch.forward_mode.is_extend()
            rows = batch.extend_num_tokens if is_prompt else 0
            clock.passes(None if is_prompt else batch, rows, NUM_LAYERS)
            return run_stock(scheduler, batch)

        monkeypatch.setattr(stepped.loop._launcher, "launch", launching)
        monkeypatch.setattr(loops, "run_stock", running)
        yield exact, clock
        exact.settle()


def test_no_step_is_longer_than_the_limit(paced: tuple[ExactScheduler, SimulatedClock]) -> None:
    """Long prompts of some steps, by layers or by tokens, and short ones that come meanwhile."""
    exact, clock = paced
    overtakes = bool(exact.stepped.loop.controls.config.layered_max_parked)
    exact.send(prompt(10, 1), 400)
    exact.step(5)
    for seed in range(2, 8):  # it learns what steps take
        exact.finish(exact.send(prompt(510, seed), 2), exact.send(prompt(60, seed), 2))
    clock.steps_s.clear()
    for seed in range(10, 14):
        long = exact.send(prompt(510, seed), 2)
        exact.step()
        assert not exact.launched(long)
        shorts = [exact.send(prompt(60, 4 * seed + index), 2) for index in range(2)]
        first = 0
        for _ in range(2):
            exact.step()
            first += exact.launched(shorts[0])
            assert not exact.launched(shorts[1])
        assert (first > 0) == overtakes
        exact.finish(long, *shorts)
    assert max(clock.steps_s) <= LIMIT_S
    assert max(clock.steps_s) > LIMIT_S / 2  # and the limit is used
