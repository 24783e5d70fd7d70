"""Short prompts overtake on pipeline stages, tick by tick, with answers that are known."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from exact_pipeline import ExactPipeline, decode_beside, enter, exact_pipeline
from harness import SteppedScheduler
from prompts import prompt

CUTS = (0, 3, 6, 8)
NUM_LAYERS = CUTS[-1]


@pytest.fixture
def overtaking(stepped: SteppedScheduler) -> Iterator[ExactPipeline]:
    if stepped.scheduler.enable_overlap:
        pytest.skip(reason="SGLang's pipeline loop has no overlap scheduler: run with --without-overlap")
    flags = {"layered_max_parked": 1, "layered_short_tokens": 64}
    with exact_pipeline(stepped, CUTS, **flags) as exact:
        assert stepped.change({"layered_group_tokens": 1})
        yield exact
        exact.settle()


def ticks_until(exact: ExactPipeline, rid: str) -> int:
    """Ticks until a prompt has its first token."""
    for tick in range(60):
        if exact.launched(rid):
            return tick
        exact.step()
    raise AssertionError(f"{rid} waits; {exact.describe()}")


@pytest.mark.parametrize("num_ticks", range(NUM_LAYERS))
@pytest.mark.parametrize("decodes", [True, False])
def test_a_short_prompt_goes_first_on_every_stage(
    overtaking: ExactPipeline, num_ticks: int, decodes: bool
) -> None:
    """A group a layer for both, so that it takes two ticks a layer at most."""
    if decodes:
        decode_beside(overtaking)
    long = overtaking.send(prompt(300, 2), 5)
    enter(overtaking, long)
    overtaking.step(num_ticks)
    short = overtaking.send(prompt(30, 3), 5)
    assert ticks_until(overtaking, short) <= 2 * NUM_LAYERS + 1
    assert overtaking.launched(long) or num_ticks < NUM_LAYERS / 2


def test_two_long_prompts_on_a_stage_do_not_keep_a_short_one_out(overtaking: ExactPipeline) -> None:
    """All stages have a cohort, and one waits where another is."""
    decode_beside(overtaking)
    longs = [overtaking.send(prompt(512, 2 + index), 5) for index in range(4)]
    for _ in range(40):
        if len(overtaking.loop.cohorts) == len(CUTS) - 1:
            break
        overtaking.step()
    short = overtaking.send(prompt(30, 9), 5)
    assert ticks_until(overtaking, short) <= 2 * NUM_LAYERS + 1
    assert not overtaking.launched(longs[-1])


def test_short_prompts_without_end_keep_no_long_one_out(overtaking: ExactPipeline) -> None:
    decode_beside(overtaking)
    enter(overtaking, overtaking.send(prompt(300, 2), 5))
    late = overtaking.send(prompt(400, 3), 2)
    for seed in range(200):
        if overtaking.launched(late):
            break
        if len(overtaking.live) < 6:
            overtaking.send(prompt(30, 10 + seed), 1)
        overtaking.step()
    assert overtaking.launched(late)


@pytest.mark.parametrize("who", ["long", "short", "both"])
@pytest.mark.parametrize("num_ticks", [1, 4, 7])
def test_aborts_while_a_short_prompt_overtakes(overtaking: ExactPipeline, who: str, num_ticks: int) -> None:
    decode_beside(overtaking)
    long = overtaking.send(prompt(300, 2), 5)
    enter(overtaking, long)
    short = overtaking.send(prompt(30, 3), 5)
    overtaking.step(num_ticks)
    for rid in {"long": [long], "short": [short], "both": [long, short]}[who]:
        overtaking.abort(rid)
    overtaking.step(2)
    assert long not in overtaking.cohort or who == "short"
