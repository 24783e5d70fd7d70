"""Step policies on the real scheduler: what they say is done, and no decision changes a token."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness import SteppedScheduler
from prompts import prompt
from sglang_layered.auto.policy import AutoPolicy
from sglang_layered.auto.step_times import NAMES
from sglang_layered.core.capability import Capability
from sglang_layered.core.events import StepDone
from sglang_layered.core.layer_shape import LayerShape
from sglang_layered.core.pacing import Decision, ModelSizes, PaceView, QueueView, Start, StepLoad
from sglang_layered.core.plan import LayerGroupPlan
from sglang_layered.core.view import SchedulerView
from sglang_layered.errors import ConfigError
from sglang_layered.scheduler.calibration import CalibrationFile


@contextmanager
def auto(stepped: SteppedScheduler, **changes: Any) -> Iterator[AutoPolicy]:
    """The server as if it had been started with policy auto."""
    controls, before = stepped.loop.controls, stepped.loop.controls.config
    controls._adopt(replace(before, layered_policy="auto", **changes), "test")
    assert isinstance(controls.policy, AutoPolicy)
    try:
        yield controls.policy
        stepped.step_until(stepped.scheduler.is_fully_idle)
    finally:
        controls._adopt(before, "test")
        controls._learned = None
        stepped.step()


class Scripted:
    """A step policy whose answers are drawn from a seed; remembers what it was asked and told."""

    can = frozenset({Capability.LEARNS, Capability.KEEPS_TBT_LIMIT, Capability.PACES_STEPS})
    amounts = ("nothing",)

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.queues: list[QueueView] = []
        self.paces: list[PaceView] = []
        self.observed: list[tuple[StepLoad, float]] = []
        self.gaps: list[float] = []
        self.limits: list[float | None] = []
        self.start: Start | None = None

    def plan(self, view: SchedulerView) -> LayerGroupPlan:
        return LayerGroupPlan.whole(view.num_layers)

    def begin(self, sizes: ModelSizes, layers: Sequence[LayerShape], start: Start) -> None:
        self.sizes, self.start = sizes, start

    def keep_tbt_limit(self, limit_s: float | None) -> None:
        self.limits.append(limit_s)

    def learned(self) -> Mapping[str, Sequence[float]]:
        return {}

    def cohort_tokens(self, view: QueueView) -> int:
        self.queues.append(view)
        return self.dice.randint(1, view.max_tokens)

    def prompt_s(self, num_tokens: int) -> float:
        return 1e-3 * num_tokens

    def next_layers(self, view: PaceView) -> Decision:
        self.paces.append(view)
        return Decision(self.dice.randint(1, 3), 0.1, 0.2, True)

    def observe(self, load: StepLoad, duration_s: float) -> float:
        self.observed.append((load, duration_s))
        return duration_s

    def observe_gap(self, gap_s: float, was_planned: bool) -> None:
        self.gaps.append(gap_s)


@contextmanager
def scripted(stepped: SteppedScheduler, seed: int) -> Iterator[Scripted]:
    controls = stepped.loop.controls
    policy, before = Scripted(seed), controls.policy
    controls.put_in_force(controls.config, policy, "test")
    try:
        yield policy
        stepped.step_until(stepped.scheduler.is_fully_idle)
        stepped.step()
    finally:
        controls.put_in_force(controls.config, before, "test")
        controls._learned = None
        stepped.step()


def layered_steps(stepped: SteppedScheduler) -> list[StepDone]:
    return [each for each in stepped.events if isinstance(each, StepDone) and each.kind == "layered"]


def expected(stepped: SteppedScheduler, prompts: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Tokens of these prompts one after another."""
    found = [stepped.finish(stepped.send(prompt(tokens, seed), 6))[0] for tokens, seed in prompts]
    stepped.drain()
    return found


@pytest.mark.parametrize("seed", range(4))
def test_no_decision_changes_a_token(stepped: SteppedScheduler, seed: int) -> None:
    prompts = [(150, 31), (700, 32), (40, 33), (333, 34)]
    wanted = expected(stepped, prompts)
    with scripted(stepped, seed) as policy:
        running = stepped.send(prompt(20, 1), 60)
        stepped.step(3)
        late = [stepped.send(prompt(tokens, number), 6) for tokens, number in prompts]
        assert stepped.finish(*late) == wanted
        stepped.finish(running)
    assert policy.queues and policy.paces


def test_what_the_policy_says_is_done(stepped: SteppedScheduler) -> None:
    with scripted(stepped, 5) as policy:
        running = stepped.send(prompt(20, 1), 80)
        stepped.step(3)
        late = stepped.send(prompt(400, 2), 4)
        stepped.finish(late, running)
        steps = layered_steps(stepped)
        assert sum(each.group.num_layers for each in steps if each.group) % stepped.num_layers == 0
        for each in steps:
            assert each.decision is not None and each.group is not None
            rest = stepped.num_layers - each.group.start
            assert each.group.num_layers == min(each.decision.layers, rest)
        rows = [sum(each.prompt.values()) for each in steps if each.group and each.group.start == 0]
        assert sum(rows) == 400
        assert policy.start is not None and policy.start.rates.byte_s > 0
        assert {view.load.decode_rows for view in policy.paces} == {1}
        assert [view.done_layers for view in policy.paces] == [
            each.group.start for each in steps if each.group
        ]


def test_every_step_is_learned_with_its_load_and_its_time(stepped: SteppedScheduler) -> None:
    with scripted(stepped, 6) as policy:
        first = stepped.send(prompt(60, 3), 12)
        stepped.step(4)
        second = stepped.send(prompt(90, 4), 3)
        stepped.finish(first, second)
        stepped.step_until(stepped.scheduler.is_fully_idle)
        stepped.step(2)
    done = [each for each in stepped.events if isinstance(each, StepDone)]
    assert [load for load, _ in policy.observed] == [each.load for each in done]
    assert [took for _, took in policy.observed] == [each.duration_s for each in done]
    whole = policy.observed[0][0]
    assert whole.prompt_lens == (60,) and whole.prompt_layers == pytest.approx(stepped.num_layers)
    decodes = [load for load, _ in policy.observed if not load.prompt_rows]
    assert decodes and all(load.decode_tokens > 60 for load in decodes[:3])
    assert policy.gaps and min(policy.gaps) > 0


def test_a_limit_that_cannot_be_kept_gives_one_layer_a_step(stepped: SteppedScheduler) -> None:
    with auto(stepped, slo_tbt_ms=1e-3):
        running = stepped.send(prompt(20, 1), 60)
        stepped.step(6)
        late = stepped.send(prompt(300, 2), 2)
        stepped.finish(late, running)
        steps = layered_steps(stepped)
        assert [each.group.num_layers for each in steps if each.group] == [1] * stepped.num_layers
        assert all(each.decision is not None and not each.decision.fits for each in steps)


def test_a_generous_limit_gives_one_step(stepped: SteppedScheduler) -> None:
    with auto(stepped, slo_tbt_ms=1e7):
        running = stepped.send(prompt(20, 1), 40)
        stepped.step(6)
        late = stepped.send(prompt(300, 2), 2)
        stepped.finish(late, running)
        [step] = layered_steps(stepped)
        assert step.decision is not None and step.decision.fits
        assert step.decision.budget_s < 1e4
        assert step.decision.predicted_s > 0


def test_the_operator_can_go_to_a_fixed_number_of_groups_and_back(stepped: SteppedScheduler) -> None:
    with auto(stepped, slo_tbt_ms=1e7) as policy:
        most = stepped.scheduler.chunked_prefill_size
        running = stepped.send(prompt(20, 1), 60)
        stepped.step(6)
        assert stepped.change({"layered_num_groups": 3})
        stepped.step()
        assert stepped.scheduler.chunked_prefill_size == most
        stepped.finish(stepped.send(prompt(300, 2), 2))
        assert len(layered_steps(stepped)) == 3
        assert all(each.decision is None for each in layered_steps(stepped))
        learned = policy.times
        assert stepped.change({"layered_num_groups": 0})
        stepped.step(2)
        assert stepped.loop.controls.policy is policy and policy.times is learned and learned.num_steps
        stepped.finish(stepped.send(prompt(300, 7), 2), running)
        assert len(layered_steps(stepped)) == 4


def test_a_step_policy_that_raises_leaves_layered_mode(
    stepped: SteppedScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stepped.loop._checker, "is_strict", False)
    with scripted(stepped, 8) as policy:
        running = stepped.send(prompt(20, 1), 40)
        stepped.step(3)
        monkeypatch.setattr(policy, "next_layers", lambda view: 1 / 0)
        late = stepped.send(prompt(300, 2), 4)
        stepped.finish(late, running)
        assert not stepped.loop.controls.is_layered
    assert stepped.change({"layered_prefill": 1})


def test_what_was_learned_stays_when_layered_mode_is_left_and_comes_back(stepped: SteppedScheduler) -> None:
    with auto(stepped, slo_tbt_ms=1e7) as policy:
        stepped.finish(stepped.send(prompt(60, 3), 8))
        learned = policy.times
        assert learned.num_steps > 0
        assert stepped.change({"layered_prefill": 0})
        stepped.step(2)
        assert stepped.change({"layered_prefill": 1, "layered_tbt_ms": 30})
        stepped.step(2)
        assert stepped.loop.controls.policy is policy and policy.times is learned
        assert policy.tbt_limit_s == 0.03


def test_prompts_wait_in_the_order_of_their_slack(stepped: SteppedScheduler) -> None:
    with auto(stepped, slo_tbt_ms=1e-3, slo_ttft_ms=1e6) as policy:
        running = stepped.send(prompt(20, 1), 80)
        stepped.step(6)
        first = stepped.send(prompt(100, 2), 2)
        stepped.step(2)
        assert stepped.loop.inflight is not None
        short, long = stepped.send(prompt(50, 3), 2), stepped.send(prompt(450, 4), 2)
        stepped.loop.driver.step_begins()
        policy.times.coefficients = (1e-3,) * len(NAMES)  # a ms a row and a pair
        stepped.loop.controls.admission.order_by_deadline(policy, stepped.loop.driver._now_s, 1e6)
        queue = [req.rid for req in stepped.scheduler.waiting_queue]
        assert queue == [long, short]
        stepped.finish(first, short, long, running)


def test_a_calibration_is_kept_and_only_for_its_kind_of_server(
    stepped: SteppedScheduler, tmp_path: Path
) -> None:
    path = tmp_path / "deep" / "calibration.json"
    with auto(stepped, slo_tbt_ms=1e7, layered_calibration_file=str(path)) as policy:
        stepped.finish(stepped.send(prompt(60, 3), 8))
        stepped.step_until(stepped.scheduler.is_fully_idle)
        stepped.loop.driver.close()
        learned = policy.learned()
    assert json.loads(path.read_text())["learned"] == learned
    with auto(stepped, slo_tbt_ms=1e7, layered_calibration_file=str(path)) as policy:
        stepped.step()
        assert policy.learned() == learned
    file = CalibrationFile.of(stepped.scheduler, ModelSizes(99), str(path), policy)
    with pytest.raises(ConfigError, match="num_layers"):
        file.read()
    path.write_text("{}")
    with pytest.raises(ConfigError, match="no calibration"):
        file.read()


@pytest.mark.parametrize("is_heard", [False, True])
def test_a_policy_learns_from_no_step_that_was_launched_before_it(
    stepped: SteppedScheduler, is_heard: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    stepped.send(prompt(10, 1), 30)
    stepped.step(3)
    loop, driver = stepped.loop, stepped.loop.driver
    monkeypatch.setattr(loop, "is_heard", is_heard)  # as on rank 0, whose listeners the others have not
    stepped.step()
    with auto(stepped, slo_tbt_ms=100.0):
        loop.settle()
        assert not driver._learning and driver._clock.publish().durations_s == ()
        stepped.step()
        loop.settle()
        assert len(driver._learning) == len(driver._clock.publish().durations_s) == 1
        driver._learning.clear()
