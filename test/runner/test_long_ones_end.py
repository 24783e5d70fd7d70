"""A long prompt ends within a bounded number of steps, whatever arrives and whatever a policy answers.

Short prompts arrive without end: at random, or as fast as there is room, with a policy that does all it may
against the long one. `--hypothesis-profile=long` takes 100,000 arrivals and steps instead of some hundreds.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from asked import NUM_LAYERS, ON
from exact_scheduler import ExactScheduler
from exact_swap import exact_scheduler
from harness import SteppedScheduler
from prompts import prompt
from scheduler_machine import MOST_ASKED
from sglang_layered.core import bounds
from sglang_layered.core.questions import Snapshot
from sglang_layered.scheduler import rank_clock
from wishes import AtRandom, in_force

LONG_TOKENS, NEW_TOKENS, SHORT_TOKENS, MOST_LIVE = 1200, 5, 60, 10
MOST_PASSED, MOST_HELD_STEPS = 8, 5
SMALL = settings(
    max_examples=6,
    derandomize=True,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
DICE = st.tuples(st.integers(0, 10**9), st.sampled_from([1, 2]), st.booleans())


class Against(AtRandom):
    """Does against the long prompt what it may: all others first, held, overtaken, sitting out."""

    def order(self, view: Snapshot) -> Sequence[int]:
        return [index for index, each in enumerate(view.waiting) if each.tokens <= SHORT_TOKENS]

    def hold(self, view: Snapshot) -> float:
        return 1e9

    def preempt(self, view: Snapshot) -> Sequence[int] | None:
        return self.order(view)

    def decode_rows(self, view: Snapshot) -> Sequence[int] | None:
        return (view.running.context_tokens < LONG_TOKENS).nonzero()[0].tolist()  # type: ignore[no-any-return]


def most_steps(chunks: int, max_parked: int) -> int:
    """That a prompt of so many chunks may take, with all that may come before each of its steps."""
    a_cohort = NUM_LAYERS * (1 + NUM_LAYERS) ** max_parked  # it may be overtaken before each of its groups
    until_it_is_first = (MOST_PASSED + 1) * (a_cohort + MOST_HELD_STEPS)
    return until_it_is_first + chunks * (a_cohort + 1) + NEW_TOKENS * (1 + bounds.MOST_SAT_OUT) + 2


def steps_of_a_long_one(exact: ExactScheduler, dice: random.Random, eager: bool) -> int:
    """Steps until a long prompt has ended in a stream of short ones that does not."""
    short = [prompt(length, seed) for seed, length in enumerate((SHORT_TOKENS, 30, 5))]
    for tokens in short:
        exact.send(tokens, 20)
    exact.step(3)
    long = exact.send(prompt(LONG_TOKENS, 9), NEW_TOKENS)
    for step in itertools.count(1):
        while len(exact.live) < MOST_LIVE and (eager or dice.random() < 0.4):
            exact.send(dice.choice(short), dice.randint(1, 6))
        exact.step()
        if long not in exact.live:
            return step
        assert step < 5000, f"the long prompt starves; {exact.describe()}"
    raise AssertionError


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", [AtRandom, Against])
def test_a_long_prompt_ends_within_a_bound_whatever_arrives(
    stepped: SteppedScheduler, kind: type[AtRandom], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "MOST_PASSED", MOST_PASSED)
    monkeypatch.setattr(bounds, "MOST_HELD_S", float(MOST_HELD_STEPS))
    seconds = map(float, itertools.count())  # a step takes one
    monkeypatch.setattr(rank_clock, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    chunks = -(-LONG_TOKENS // stepped.scheduler.chunked_prefill_size)

    def whatever(dice: tuple[int, int, bool]) -> None:
        seed, max_parked, eager = dice
        kind.seed = seed
        with exact_scheduler(stepped, NUM_LAYERS, **ON | {"layered_max_parked": max_parked}) as exact:
            exact.answers_may_wait(MOST_ASKED)
            with in_force(stepped, kind()):
                steps = steps_of_a_long_one(exact, random.Random(seed), eager)
                exact.settle()
        assert steps <= most_steps(chunks, max_parked), (steps, dice)

    is_default = settings.get_current_profile_name() != "long"
    given(DICE)((SMALL if is_default else settings.get_profile("long"))(whatever))()
