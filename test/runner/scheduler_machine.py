"""Operations on the layered scheduler, for any sequence of them: clients, an operator, shortages."""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
)

from exact_answers import FIRST_TOKEN, VOCAB
from exact_swap import exact_scheduler
from harness import SteppedScheduler
from wishes import AtRandom

NOTHING: Mapping[str, Any] = {}
MOST_ASKED = 30  # steps that a prompt may wait when a policy answers
MOST_LIVE = 14
MOST_SLOTS = 10_000  # more than there are
BASES = [random.Random(seed).choices(range(FIRST_TOKEN, VOCAB), k=1200) for seed in range(3)]
BASE = st.integers(0, len(BASES) - 1)
NEW = st.integers(1, 20)
OFTEN = st.sampled_from([True, True, False])
THEN = st.integers(0, 2)  # steps after an operation


class SchedulerMachine(RuleBasedStateMachine):
    """Clients, an operator and shortages of KV slots against one scheduler, each time of another depth."""

    def __init__(
        self,
        stepped: SteppedScheduler,
        flags: Mapping[str, Any] = NOTHING,
        priorities: Sequence[int | None] = (None,),
    ) -> None:
        """Requests are of these priorities, in turns."""
        super().__init__()
        self.stepped = stepped
        self.flags = flags
        self.priorities = cycle(priorities)
        self.pause_left = self.shortage_left = 0  # operations until it ends

    @initialize(
        num_layers=st.sampled_from([7, 7, 7, 4, 1]),
        group_tokens=st.sampled_from([1, 1, 16, 100]),
        seed=st.integers(0, 10**6),
    )
    def start(self, num_layers: int, group_tokens: int, seed: int) -> None:
        AtRandom.seed = seed
        self.swap = exact_scheduler(self.stepped, num_layers, **self.flags)
        self.exact = self.swap.__enter__()
        if "layered_policy" in self.flags:
            self.exact.answers_may_wait(MOST_ASKED)
        assert self.stepped.change({"layered_group_tokens": group_tokens})
        self.exact.conversations.open()

    def teardown(self) -> None:
        """Settle, unless an operation has just failed, or was interrupted in the middle of a step."""
        if not hasattr(self, "exact"):
            return
        error = sys.exc_info()[
            1
        ]  # hypothesis ends an example by a BaseException of its own, between operations
        failure = error if isinstance(error, (Exception, KeyboardInterrupt, pytest.fail.Exception)) else None
        try:
            if failure is None:
                self.exact.settle()
        except Exception as unsettled:
            failure = unsettled
            raise
        finally:
            self.swap.__exit__(failure and type(failure), failure, None)

    def then(self, steps: int) -> None:
        """Disturbances come nearer to their end, then the scheduler steps."""
        self.pause_left, self.shortage_left = max(self.pause_left - 1, 0), max(self.shortage_left - 1, 0)
        if not self.pause_left:
            self.stepped.resume()
        if not self.shortage_left:
            self.exact.give_slots()
        self.exact.step(steps)

    def has_room(self) -> bool:
        return len(self.exact.live) < MOST_LIVE

    def send(self, prompts: list[list[int]], new: int, company: bool, steps: int) -> None:
        """Send prompts; `company` makes sure that something decodes beside them."""
        if company and not self.exact.scheduler.running_batch.reqs:
            self.exact.send(BASES[0][:10], 40)
            self.exact.step(2)
        for index, prompt in enumerate(prompts):
            self.exact.send(prompt, new + index, priority=next(self.priorities))
        self.then(steps)

    @precondition(has_room)
    @rule(length=st.integers(1, 60), base=BASE, new=NEW, steps=THEN)
    def send_short(self, length: int, base: int, new: int, steps: int) -> None:
        self.send([BASES[base][-length:]], new, False, steps)

    @precondition(has_room)
    @rule(length=st.integers(61, 1200), base=BASE, new=NEW, company=OFTEN, steps=THEN)
    def send_long(self, length: int, base: int, new: int, company: bool, steps: int) -> None:
        self.send([BASES[base][-length:]], new, company, steps)

    @precondition(has_room)
    @rule(shared=st.integers(1, 1000), own=st.integers(1, 200), base=BASE, new=NEW, company=OFTEN, steps=THEN)
    def send_relative(self, shared: int, own: int, base: int, new: int, company: bool, steps: int) -> None:
        """A prompt that starts as others of its base do."""
        tokens = BASES[base][:shared] + random.Random(own).choices(BASES[base], k=own)
        self.send([tokens], new, company, steps)

    @precondition(has_room)
    @rule(count=st.integers(2, 3), length=st.integers(1, 300), new=NEW, company=OFTEN, steps=THEN)
    def send_together(self, count: int, length: int, new: int, company: bool, steps: int) -> None:
        self.send([tokens[:length] for tokens in BASES[:count]], new, company, steps)

    @precondition(lambda self: self.flags and self.has_room() and self.exact.cohort)
    @rule(length=st.integers(1, 400), base=BASE, new=NEW, steps=st.integers(1, 3))
    def send_behind(self, length: int, base: int, new: int, steps: int) -> None:
        """A prompt that may overtake: most are short."""
        self.send([BASES[base][-max(length - 300, length % 90 + 1) :]], new, False, steps)

    @rule(steps=st.integers(1, 5))
    def step(self, steps: int) -> None:
        self.then(steps)

    @precondition(lambda self: not self.exact.cohort)
    @rule(steps=st.integers(6, 12))
    def run_on(self, steps: int) -> None:
        self.then(steps)

    @precondition(lambda self: self.has_room() and self.exact.conversations.ready)
    @rule(index=st.integers(0, 9), length=st.integers(1, 500), base=BASE, new=NEW, company=OFTEN, steps=THEN)
    def send_turn(self, index: int, length: int, base: int, new: int, company: bool, steps: int) -> None:
        """The next turn of a conversation, beside something that decodes."""
        ready = self.exact.conversations.ready
        if company and not self.exact.scheduler.running_batch.reqs:
            self.send([], new, True, 0)
        self.exact.conversations.turn(ready[index % len(ready)], BASES[base][-length:], new)
        self.then(steps)

    @precondition(lambda self: self.has_room() and self.exact.conversations.ready)
    @rule(length=st.integers(100, 500), base=BASE, steps=st.integers(1, 5), paused=st.booleans())
    def disturb_turn(self, length: int, base: int, steps: int, paused: bool) -> None:
        """A turn that a pause or a full pool meets on its way through the layers."""
        self.send_turn(0, length, base, 3, True, steps)
        if paused:
            self.pause("retract", 1, 1)
        elif self.may_take_slots() and self.exact.cohort:
            self.take_slots_until_cohort_goes(1, 3)

    @precondition(lambda self: self.exact.conversations.may_open)
    @rule()
    def open_session(self) -> None:
        self.exact.conversations.open()

    @precondition(lambda self: self.exact.conversations.idle)
    @rule(steps=THEN)
    def close_session(self, steps: int) -> None:
        self.exact.close_session(self.exact.conversations.idle[0])
        self.then(steps)

    @rule(most=st.sampled_from([1, 2, 3, 3, 5, 14]), steps=THEN)
    def limit_running(self, most: int, steps: int) -> None:
        self.exact.limit_running(most)
        self.then(steps)

    @precondition(lambda self: self.exact.live)
    @rule(index=st.integers(0, MOST_LIVE), steps=THEN)
    def abort(self, index: int, steps: int) -> None:
        """The last index means everybody."""
        if index == MOST_LIVE:
            self.abort_all(steps)
        else:
            self.abort_one(self.exact.live[index % len(self.exact.live)], steps)

    @precondition(lambda self: self.exact.cohort)
    @rule(index=st.integers(0, MOST_LIVE - 1), steps=THEN)
    def abort_in_cohort(self, index: int, steps: int) -> None:
        self.abort_one(self.exact.cohort[index % len(self.exact.cohort)], steps)

    @precondition(lambda self: self.exact.cohort)
    @rule(steps=THEN)
    def abort_all_in_flight(self, steps: int) -> None:
        self.abort_all(steps)

    def abort_all(self, steps: int) -> None:
        if not self.exact.conversations.queued():
            self.exact.abort_all()
        self.then(steps)

    def abort_one(self, rid: str, steps: int) -> None:
        """SGLang takes every request whose id starts with this one's."""
        if not any(name.startswith(rid) for name in self.exact.conversations.queued()):
            self.exact.abort(rid)
        self.then(steps)

    @rule(mode=st.sampled_from(["retract", "in_place"]), length=st.integers(1, 3), steps=THEN)
    def pause(self, mode: str, length: int, steps: int) -> None:
        self.exact.pause(mode)
        self.pause_left = length
        self.then(steps)

    def may_take_slots(self) -> bool:
        return self.exact.taken is None

    @precondition(lambda self: self.may_take_slots() and self.exact.cohort)
    @rule(length=st.integers(1, 3), steps=st.integers(1, 4))
    def take_slots_until_cohort_goes(self, length: int, steps: int) -> None:
        for _ in range(steps):
            if self.exact.cohort:
                self.exact.take_slots(MOST_SLOTS)
                self.exact.step()
        self.shortage_left = length
        self.then(0)

    @precondition(may_take_slots)
    @rule(num_slots=st.sampled_from([100, 1000, MOST_SLOTS]), length=st.integers(2, 6), steps=THEN)
    def take_slots(self, num_slots: int, length: int, steps: int) -> None:
        self.exact.take_slots(num_slots)
        self.shortage_left = length
        self.then(steps)

    @precondition(lambda self: self.exact.taken is None)
    @rule(steps=THEN)
    def flush_cache(self, steps: int) -> None:
        if self.exact.scheduler.flush_cache(empty_cache=False):
            live = set(self.exact.live)
            waiting = {req.rid for req in self.exact.scheduler.waiting_queue}
            # SGLang 0.5.23 flushes in a pause though some wait: they hold nothing.
            assert not live or (live <= waiting and self.exact.scheduler._engine_paused)
        self.then(steps)

    @rule(
        layered=st.sampled_from([0, 1, 1]),
        group_tokens=st.sampled_from([1, 1, 40, 300]),
        num_groups=st.sampled_from([0, 0, 0, 1, 3, 7]),
        cohort_tokens=st.sampled_from([100, 512, 512]),
        max_parked=st.sampled_from([0, 1, 1, 1, 2]),
        steps=THEN,
    )
    def change_settings(
        self,
        layered: int,
        group_tokens: int,
        num_groups: int,
        cohort_tokens: int,
        max_parked: int,
        steps: int,
    ) -> None:
        wanted = {"layered_prefill": layered, "layered_group_tokens": group_tokens}
        if self.flags:
            wanted["layered_max_parked"] = max_parked
        wanted |= {"layered_num_groups": num_groups, "layered_cohort_tokens": cohort_tokens}
        assert self.stepped.change(wanted) == (num_groups <= self.exact.most_groups)
        self.then(steps)
