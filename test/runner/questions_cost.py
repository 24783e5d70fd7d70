"""What the four questions cost the scheduler: CPU time of a step that asks, with the policies that ship.

256 requests decode and more prompts wait than a policy sees. Before each step one prompt goes and another
comes, so no view is the one before. A full server asks neither `order` nor `hold`; here it does, as if there
were a place, so that all stay. A question is timed where the scheduler asks it: what a policy sees, its
answer, the bounds, and what was noted for it when results came. A new prompt's way through SGLang's prefix
cache is its own row (*looking up*): it is taken once a prompt, and grows with its length. Run by
`scripts/bench-scheduler`.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from harness import SteppedScheduler
from prompts import prompt
from sglang_layered.core.bounds import MOST_LOOKED_AT
from sglang_layered.scheduler import asking

QUESTIONS = {  # the policy whose answer is timed, and the call that asks
    "order": ("flow-prefill", "shown"),
    "hold": ("staggered", "shown"),
    "preempt": ("flow-prefill", "overtaking"),
    "decode_rows": ("near-late", "decoding"),
}
LOOKING_UP = "looking up"
LIMITS: dict[str, Any] = {"slo_ttft_ms": 1e6, "slo_tbt_ms": 1e4, "layered_max_parked": 1}
LATE = {"slo_tbt_ms": 1e-3}  # a cohort then takes a step a layer
PROMPT = prompt(1000, 1)


def questions(stepped: SteppedScheduler, rounds: int) -> dict[str, list[float]]:
    """CPU milliseconds of each question in the steps that asked it, by its name, and of looking up."""
    times: dict[str, list[float]] = {LOOKING_UP: []}
    num_running = len(stepped.scheduler.running_batch.reqs)
    for question, (policy, call) in QUESTIONS.items():
        with _policy(stepped, policy, **LIMITS | (LATE if question == "preempt" else {})):
            if question in ("order", "hold"):
                stepped.limit_running(num_running)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(asking, "has_place", lambda scheduler: True)
                times[question], looking_up = _asked(stepped, call, 8 * rounds)
            times[LOOKING_UP] += looking_up
            stepped.limit_running(stepped.scheduler.max_running_requests)
    return times


@contextmanager
def _policy(stepped: SteppedScheduler, name: str, **flags: Any) -> Iterator[None]:
    controls, before = stepped.loop.controls, stepped.loop.controls.config
    controls._adopt(replace(before, layered_policy=name, **flags), "bench")
    stepped.loop.is_heard = False  # a trace of the answers is no part of deciding
    stepped.loop._overtaking._use(controls.config)
    stepped.step(4)
    yield
    for req in [*stepped.scheduler.waiting_queue]:
        stepped.abort(req.rid)
    stepped.step_until(lambda: not stepped.loop.cohorts)
    controls._adopt(before, "bench")


def _asked(stepped: SteppedScheduler, call: str, count: int) -> tuple[list[float], list[float]]:
    asks, scheduler = stepped.loop.driver.asking, stepped.scheduler
    spent, times, looking_up = Counter[str](), list[float](), list[float]()
    for owner, name in ((asks, call), (asks, "processed"), (asks._queue, "look_up")):
        setattr(owner, name, _counted(getattr(owner, name), name, spent))
    alive: list[Any] = []  # who leaves a queue by admission lives on: to end a request is no part of asking
    while len(times) < count + MOST_LOOKED_AT // 8:  # until all that wait have been looked up
        while len(scheduler.waiting_queue) <= MOST_LOOKED_AT:
            stepped.send(PROMPT, 1)
        alive.append(scheduler.waiting_queue[0])
        stepped.abort(scheduler.waiting_queue[0].rid)
        stepped.send(PROMPT, 1)
        spent.clear()
        stepped.step()
        if call in spent:
            times.append(spent[call] + spent["processed"])
            looking_up.append(spent["look_up"])
    return times[-count:], looking_up[-count:]


def _counted(call: Callable[..., Any], name: str, spent: Counter[str]) -> Callable[..., Any]:
    """The call, its CPU milliseconds added up by its name, without those of looking up in it."""

    def counted(*args: Any) -> Any:
        before, start = spent["look_up"], time.thread_time()
        try:
            return call(*args)
        finally:
            took = (time.thread_time() - start) * 1e3
            spent[name] += took - (spent["look_up"] - before)  # type: ignore[assignment]

    return counted
