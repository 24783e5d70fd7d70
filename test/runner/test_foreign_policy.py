"""A policy that is not ours, on the real scheduler: it may what `auto` may, and is asked what it can."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness import SteppedScheduler
from prompts import prompt
from sglang_layered.config import LayeredConfig
from sglang_layered.core.choice import APART, StepShape, StrategyChoice
from sglang_layered.core.events import StepDone
from sglang_layered.scheduler.calibration import CalibrationFile
from sglang_layered.scheduler.metrics import needs_of
from test_pacing import scripted

EVERY_STEP = "policy_every_step:EveryStep"


@pytest.fixture(autouse=True)
def examples_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "examples"))


@contextmanager
def served_by(stepped: SteppedScheduler, name: str, **changes: Any) -> Iterator[Any]:
    """The server as if it had been started with this policy; then what it learned is kept, as at the end."""
    controls, before = stepped.loop.controls, stepped.loop.controls.config
    controls._adopt(replace(before, layered_policy=name, **changes), "test")
    try:
        yield controls.policy
        stepped.step_until(stepped.scheduler.is_fully_idle)
        stepped.step()
        stepped.loop.driver.close()
    finally:
        controls._adopt(before, "test")
        controls._learned = None
        stepped.step()


def serve(stepped: SteppedScheduler) -> None:
    """A prompt beside a decode."""
    running = stepped.send(prompt(20, 1), 40)
    stepped.step(6)
    stepped.finish(stepped.send(prompt(300, 2), 3), running)


def layered_steps(stepped: SteppedScheduler) -> list[StepDone]:
    return [each for each in stepped.events if isinstance(each, StepDone) and each.kind == "layered"]


def test_it_paces_steps_and_its_decisions_are_in_the_trace(stepped: SteppedScheduler) -> None:
    with served_by(stepped, EVERY_STEP, slo_tbt_ms=1e7):
        serve(stepped)
        assert layered_steps(stepped)
        assert all(each.decision is not None for each in layered_steps(stepped))
        assert stepped.loop.controls.policy_text == EVERY_STEP


def test_its_calibration_file_is_kept_and_read_by_the_next_server_only_of_its_kind(
    stepped: SteppedScheduler, tmp_path: Path
) -> None:
    path = tmp_path / "rows.json"
    with served_by(stepped, EVERY_STEP, layered_calibration_file=str(path)) as policy:
        serve(stepped)
    kept = json.loads(path.read_text())
    assert kept["amounts"] == ["layer_row_s"]
    assert kept["learned"] == {"layer_row_s": [policy.layer_row_s]} != {"layer_row_s": [0.0]}
    with served_by(stepped, EVERY_STEP, layered_calibration_file=str(path)) as later:
        stepped.step()
        assert later is not policy and later.layer_row_s == policy.layer_row_s
        file = CalibrationFile.of(stepped.scheduler, stepped.loop.sizes, str(path), later)
        assert file.read() == kept["learned"]
        kept["amounts"] = ["something else"]
        path.write_text(json.dumps(kept))
        with pytest.raises(ValueError, match="another version"):
            file.read()
        path.unlink()


def test_its_limit_changes_on_the_running_server(stepped: SteppedScheduler) -> None:
    with served_by(stepped, EVERY_STEP, slo_tbt_ms=40) as policy:
        assert policy.limit_s == 0.04
        assert stepped.change({"layered_tbt_ms": 30})
        assert stepped.loop.controls.policy is policy and policy.limit_s == 0.03
        assert stepped.change({"layered_prefill": 0})
        assert stepped.change({"layered_tbt_ms": 0})
        assert stepped.change({"layered_prefill": 1})
        assert stepped.loop.controls.policy is policy and policy.limit_s is None


def test_its_metrics_are_there(stepped: SteppedScheduler) -> None:
    def needs(policy: str) -> set[str]:
        return set(needs_of(LayeredConfig("layered", layered_policy=policy))) & {"learns", "paces"}

    assert needs(EVERY_STEP) == needs("auto") == {"learns", "paces"}
    assert needs("token-target") == needs("policy_by_load:ByLoad") == set()
    assert needs("one_capability:Learns") == {"learns"}
    assert needs("one_capability:Paces") == {"paces"}
    assert not {"learns", "paces"} & set(needs_of(LayeredConfig(layered_policy=EVERY_STEP)))


@pytest.mark.parametrize(
    ("name", "called"),
    [
        ("Learns", {"begin", "observe"}),
        ("Paces", {"begin", "cohort_tokens", "next_layers"}),
        ("KeepsLimit", {"limit 10000.0", "observe_gap"}),
        ("OnStages", set()),
    ],
)
def test_only_what_a_policy_can_is_asked_of_it(
    stepped: SteppedScheduler, name: str, called: set[str]
) -> None:
    with served_by(stepped, f"one_capability:{name}", slo_tbt_ms=1e7, slo_ttft_ms=1e6) as policy:
        serve(stepped)
        groups = [each.group for each in layered_steps(stepped)]
        assert len(groups) == (3 if name == "Paces" else 4)
    assert set(policy.calls) == called
    assert stepped.loop.controls.is_layered


def test_a_disk_that_is_full_costs_one_warning(
    stepped: SteppedScheduler,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(self: object, policy: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sglang_layered.scheduler.calibration.STEPS_BETWEEN_WRITES", 1)
    monkeypatch.setattr(CalibrationFile, "write", refuse)
    path = str(tmp_path / "calibration.json")
    with served_by(stepped, "auto", layered_calibration_file=path) as policy:
        serve(stepped)
        assert stepped.loop.controls.is_layered and stepped.loop.controls.policy is policy
    told = [each for each in caplog.records if "--layered-calibration-file" in each.getMessage()]
    assert len(told) == 1 and "No space left" in told[0].getMessage()
    assert not [each for each in caplog.records if each.levelno >= logging.ERROR]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside_it(
    stepped: SteppedScheduler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows.json"
    with served_by(stepped, EVERY_STEP, layered_calibration_file=str(path)):
        serve(stepped)
        stepped.loop.driver.close()
        before = path.read_text()

        def fill(place: Path, text: str) -> None:
            with place.open("w") as file:
                file.write(text[:10])
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Path, "write_text", fill)
        stepped.loop.driver.close()
        monkeypatch.undo()
        assert path.read_text() == before
        assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_was_spoiled_later_does_not_end_a_server_that_serves(
    stepped: SteppedScheduler, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "rows.json"
    with served_by(stepped, EVERY_STEP, layered_calibration_file=str(path)):
        serve(stepped)
    kept = json.loads(path.read_text())
    for spoiled in ("{", json.dumps(kept | {"learned": {"layer_row_s": [1.0, 2.0]}})):
        path.write_text(spoiled)
        with served_by(stepped, EVERY_STEP, layered_calibration_file=str(path)):
            serve(stepped)
            assert stepped.loop.controls.is_layered
        assert "The policy starts from nothing: --layered-calibration-file" in caplog.text
        caplog.clear()


class Turns:
    """Strategies one after another; the next one is no secret."""

    learns, only = True, None

    def __init__(self, strategies: Sequence[str]) -> None:
        self._strategies, self._num_chosen = strategies, 0

    def choose(self, shape: StepShape) -> str:
        strategy = self.expected(shape)
        self._num_chosen += 1
        return strategy

    def expected(self, shape: StepShape) -> str:
        return self._strategies[self._num_chosen % len(self._strategies)]

    def observe(self, strategy: str, shape: StepShape, duration_s: float) -> None:
        pass


@pytest.mark.parametrize("strategies", [("fused",), ("sequential",), ("fused", "sequential")])
def test_a_step_is_foreseen_and_learned_as_the_strategy_that_ran_it(
    stepped: SteppedScheduler, monkeypatch: pytest.MonkeyPatch, strategies: tuple[str, ...]
) -> None:
    execution = stepped.loop._execution
    monkeypatch.setattr(execution, "choice", Turns(strategies))
    with scripted(stepped, 9) as policy:
        serve(stepped)
        steps = layered_steps(stepped)
        wanted = [each.strategy in APART for each in steps]
        assert {each.strategy for each in steps} == set(strategies) and len(steps) > 1
    assert [load.is_apart for load, _ in policy.observed if load.prompt_rows and load.decode_rows] == wanted
    assert [view.load.is_apart for view in policy.paces] == wanted
    assert not any(load.is_apart for load, _ in policy.observed if not load.decode_rows)


def test_a_trial_is_learned_as_what_it_was(
    stepped: SteppedScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--layered-execution auto`: two strategies take turns, and the load says which one ran."""
    monkeypatch.setattr(stepped.loop._execution, "choice", StrategyChoice("fused", "sequential"))
    with scripted(stepped, 10) as policy:
        for _ in range(3):
            serve(stepped)
        steps = layered_steps(stepped)
        assert {each.strategy for each in steps} == {"fused", "sequential"}
        wanted = [each.strategy == "sequential" for each in steps]
    assert [load.is_apart for load, _ in policy.observed if load.prompt_rows and load.decode_rows] == wanted


def test_the_queue_is_seen_by_the_strategy_that_is_expected(
    stepped: SteppedScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stepped.loop._execution, "choice", StrategyChoice("sequential"))
    with scripted(stepped, 11) as policy:
        serve(stepped)
    assert [view.is_apart for view in policy.queues if view.decode_rows] and all(
        view.is_apart for view in policy.queues if view.decode_rows
    )
    assert not any(view.is_apart for view in policy.queues if not view.decode_rows)
