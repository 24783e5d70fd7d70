"""With results delayed, nothing of an unfinished step is freed, changed or read early."""

from __future__ import annotations

import random

import pytest

from harness import SteppedScheduler
from prompts import alone, prompt
from sanitizer import sanitized


@pytest.fixture(autouse=True)
def only_with_overlap(pytestconfig: pytest.Config) -> None:
    if pytestconfig.getoption("--without-overlap"):
        pytest.skip(reason="without the overlap scheduler no step is unfinished when the next one starts")


def test_every_result_is_late_and_every_token_right(stepped: SteppedScheduler) -> None:
    prompts = [prompt(length, 700 + length) for length in (12, 300, 9, 700, 40, 513, 1, 130)]
    expected = [alone(stepped, tokens, 14) for tokens in prompts]
    with sanitized(stepped) as seen:
        rids = []
        for tokens in prompts:
            rids.append(stepped.send(tokens, 14))
            stepped.step(2)
        assert stepped.finish(*rids) == expected
    assert seen.violations == []
    assert seen.num_steps > 20
    assert seen.num_tensors > 10 * seen.num_steps


@pytest.mark.parametrize("seed", range(4))
def test_nothing_is_reused_when_cohorts_are_dropped(stepped: SteppedScheduler, seed: int) -> None:
    rng = random.Random(seed)
    beside = prompt(20, 730 + seed)
    expected = alone(stepped, beside, 60)
    with sanitized(stepped) as seen:
        first = stepped.send(beside, 60)
        stepped.step(2)
        for turn in range(5):
            victim = stepped.send(prompt(rng.choice([200, 400, 900]), 740 + 10 * seed + turn), 5)
            stepped.step(rng.randrange(1, 6))
            match rng.choice(["abort", "pause", "pressure"]):
                case "abort":
                    stepped.abort(victim)
                case "pause":
                    stepped.pause("retract")
                    stepped.resume()
                case "pressure":
                    with stepped.full_pool():
                        stepped.step()
            stepped.step()
        assert stepped.finish(first) == [expected]
        stepped.drain()
    assert seen.violations == []


@pytest.mark.parametrize("broken", ["no slot at all", "a slot a batch instead of a step"])
def test_the_sanitizer_sees_a_wrong_ring(
    stepped: SteppedScheduler, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    scheduler = stepped.scheduler
    if broken == "no slot at all":
        scheduler.batch_record_buf = [[], []]
        monkeypatch.setattr(scheduler, "record_batch_in_overlap", lambda batch: None)
    else:
        isolation = scheduler._forward_isolation
        monkeypatch.setattr(
            scheduler, "_forward_isolation", lambda batch, overlap: isolation(batch, overlap=True)
        )
    with sanitized(stepped) as seen:
        stepped.send(prompt(10, 760), 20)
        stepped.step(3)
        for turn in range(3):
            stepped.send(prompt(300, 761 + turn), 3)
            stepped.step(7)
    assert any("freed while it ran" in violation for violation in seen.violations)
