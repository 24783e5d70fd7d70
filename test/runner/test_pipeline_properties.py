"""Any sequence of operations on the pipeline loop; ExactPipeline checks what must hold after each tick.

About 2,000 operations by default, always the same ones. `--hypothesis-profile=long` makes 100,000 others
(with this file or folder on the command line: its conftest declares the profile).
"""

from __future__ import annotations

import logging
import os
import random
import sys
from collections.abc import Iterator
from functools import partial

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from exact_model import FIRST_TOKEN, VOCAB
from exact_pipeline import exact_pipeline
from harness import SteppedScheduler

MOST_LIVE = 14
MOST_SLOTS = 10_000  # more than there are
BASES = [random.Random(seed).choices(range(FIRST_TOKEN, VOCAB), k=1200) for seed in range(3)]
BASE = st.integers(0, len(BASES) - 1)
NEW = st.integers(1, 20)
OFTEN = st.sampled_from([True, True, False])
THEN = st.integers(0, 4)  # ticks after an operation

DEFAULT = settings(
    phases=(Phase.explicit, Phase.generate) if os.environ.get("NO_SHRINK") else tuple(Phase),
    max_examples=80,
    stateful_step_count=40,
    derandomize=True,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


class PipelineMachine(RuleBasedStateMachine):
    """Clients, an operator and shortages of KV slots against one pipeline, each time of other stages."""

    def __init__(self, stepped: SteppedScheduler) -> None:
        super().__init__()
        self.stepped = stepped
        self.shortage_left = 0  # operations until it ends

    @initialize(
        cuts=st.sampled_from([(0, 3, 6, 8), (0, 4, 7), (0, 4, 7), (0, 1, 2)]),
        group_tokens=st.sampled_from([1, 1, 16, 100]),
        most_running=st.sampled_from([1, 2, 3, 100]),
    )
    def start(self, cuts: tuple[int, ...], group_tokens: int, most_running: int) -> None:
        self.swap = exact_pipeline(self.stepped, cuts)
        self.exact = self.swap.__enter__()
        assert self.stepped.change({"layered_group_tokens": group_tokens})
        assert self.stepped.change({"pp_max_micro_batch_size": most_running})

    def teardown(self) -> None:
        """Settle, unless an operation has just failed."""
        if not hasattr(self, "exact"):
            return
        try:
            if not isinstance(sys.exc_info()[1], Exception):
                self.exact.settle()
        finally:
            self.swap.__exit__(None, None, None)

    def then(self, ticks: int) -> None:
        """A shortage comes nearer to its end, then ticks pass."""
        self.shortage_left = max(self.shortage_left - 1, 0)
        if not self.shortage_left:
            self.exact.give_slots()
        self.exact.step(ticks)

    def has_room(self) -> bool:
        return len(self.exact.live) < MOST_LIVE

    def send(self, prompts: list[list[int]], new: int, company: bool, ticks: int) -> None:
        """Send prompts; `company` makes sure that something decodes beside them."""
        if company and not any(batch.reqs for batch in self.exact.scheduler.running_mbs):
            self.exact.send(BASES[0][:10], 40)
            self.exact.step(4)
        for index, prompt in enumerate(prompts):
            self.exact.send(prompt, new + index)
        self.then(ticks)

    @precondition(has_room)
    @rule(length=st.integers(1, 60), base=BASE, new=NEW, ticks=THEN)
    def send_short(self, length: int, base: int, new: int, ticks: int) -> None:
        self.send([BASES[base][-length:]], new, False, ticks)

    @precondition(has_room)
    @rule(length=st.integers(61, 1200), base=BASE, new=NEW, company=OFTEN, ticks=THEN)
    def send_long(self, length: int, base: int, new: int, company: bool, ticks: int) -> None:
        self.send([BASES[base][-length:]], new, company, ticks)

    @precondition(has_room)
    @rule(shared=st.integers(1, 1000), own=st.integers(1, 200), base=BASE, new=NEW, company=OFTEN, ticks=THEN)
    def send_relative(self, shared: int, own: int, base: int, new: int, company: bool, ticks: int) -> None:
        """A prompt that starts as others of its base do."""
        tokens = BASES[base][:shared] + random.Random(own).choices(BASES[base], k=own)
        self.send([tokens], new, company, ticks)

    @precondition(has_room)
    @rule(count=st.integers(2, 3), length=st.integers(1, 300), new=NEW, company=OFTEN, ticks=THEN)
    def send_together(self, count: int, length: int, new: int, company: bool, ticks: int) -> None:
        self.send([tokens[:length] for tokens in BASES[:count]], new, company, ticks)

    @rule(ticks=st.integers(1, 5))
    def step(self, ticks: int) -> None:
        self.then(ticks)

    @precondition(lambda self: not self.exact.cohort)
    @rule(ticks=st.integers(6, 12))
    def run_on(self, ticks: int) -> None:
        self.then(ticks)

    @precondition(lambda self: self.exact.live)
    @rule(index=st.integers(0, MOST_LIVE), ticks=THEN)
    def abort(self, index: int, ticks: int) -> None:
        """The last index means everybody; so does SGLang's pause with mode `abort`."""
        if index == MOST_LIVE:
            self.exact.abort_all()
        else:
            self.exact.abort(self.exact.live[index % len(self.exact.live)])
        self.then(ticks)

    @precondition(lambda self: self.exact.cohort)
    @rule(index=st.integers(0, MOST_LIVE - 1), ticks=THEN)
    def abort_in_cohort(self, index: int, ticks: int) -> None:
        self.exact.abort(self.exact.cohort[index % len(self.exact.cohort)])
        self.then(ticks)

    @rule(mode=st.sampled_from(["retract", "in_place"]), ticks=THEN)
    def pause(self, mode: str, ticks: int) -> None:
        self.exact.pause(mode)
        self.then(ticks)

    def may_take_slots(self) -> bool:
        return self.exact.taken is None

    @precondition(lambda self: self.may_take_slots() and self.exact.cohort)
    @rule(length=st.integers(1, 3), ticks=st.integers(1, 4))
    def take_slots_until_cohort_goes(self, length: int, ticks: int) -> None:
        for _ in range(ticks):
            if self.exact.cohort:
                self.exact.take_slots(MOST_SLOTS)
                self.exact.step()
        self.shortage_left = length
        self.then(0)

    @precondition(may_take_slots)
    @rule(num_slots=st.sampled_from([100, 1000, MOST_SLOTS]), length=st.integers(2, 6), ticks=THEN)
    def take_slots(self, num_slots: int, length: int, ticks: int) -> None:
        self.exact.take_slots(num_slots)
        self.shortage_left = length
        self.then(ticks)

    @precondition(lambda self: self.exact.taken is None)
    @rule(ticks=THEN)
    def flush_cache(self, ticks: int) -> None:
        if self.exact.scheduler.flush_cache(empty_cache=False):
            assert not self.exact.live
        self.then(ticks)

    @rule(
        layered=st.sampled_from([0, 1, 1]),
        group_tokens=st.sampled_from([1, 1, 40, 300]),
        num_groups=st.sampled_from([0, 0, 0, 1, 2]),
        cohort_tokens=st.sampled_from([100, 512, 512]),
        most_running=st.sampled_from([1, 2, 3, 100]),
        ticks=THEN,
    )
    def change_settings(
        self,
        layered: int,
        group_tokens: int,
        num_groups: int,
        cohort_tokens: int,
        most_running: int,
        ticks: int,
    ) -> None:
        wanted = {"layered_prefill": layered, "layered_group_tokens": group_tokens}
        wanted |= {"layered_num_groups": num_groups, "layered_cohort_tokens": cohort_tokens}
        self.stepped.change(wanted)
        assert self.stepped.change({"pp_max_micro_batch_size": most_running})
        self.then(ticks)


@pytest.fixture
def silence() -> Iterator[None]:
    """SGLang warns of every retraction and every change of settings: too much to keep for a failure."""
    logging.disable(logging.ERROR)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.timeout(3600)
@pytest.mark.usefixtures("silence")
def test_any_sequence_of_operations_on_a_pipeline(stepped: SteppedScheduler) -> None:
    if stepped.scheduler.enable_overlap:
        pytest.skip(reason="SGLang's pipeline loop has no overlap scheduler: run with --without-overlap")
    is_default = settings.get_current_profile_name() != "long"
    run_state_machine_as_test(
        partial(PipelineMachine, stepped), settings=DEFAULT if is_default else settings.get_profile("long")
    )
