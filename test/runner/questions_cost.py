"""What the four questions cost the scheduler: CPU time of a step that asks, with the policies that ship.

256 requests decode and more prompts wait than a policy sees. Before each step one prompt goes and another
comes, so no view is the one before. A question is timed where the scheduler asks it: what a policy sees, its
answer, the bounds. Run by `scripts/bench-scheduler`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from harness import SteppedScheduler
from prompts import prompt
from sglang_layered.core.bounds import MOST_LOOKED_AT

QUESTIONS = {  # the policy whose answer is timed, and the call that asks
    "order": ("flow-prefill", "shown"),
    "hold": ("staggered", "shown"),
    "preempt": ("flow-prefill", "overtaking"),
    "decode_rows": ("near-late", "decoding"),
}
LIMITS: dict[str, Any] = {"slo_ttft_ms": 1e6, "slo_tbt_ms": 1e4, "layered_max_parked": 1}
LATE = {"slo_tbt_ms": 1e-3}  # a cohort then takes a step a layer
PROMPT = prompt(1000, 1)


def questions(stepped: SteppedScheduler, rounds: int) -> dict[str, list[float]]:
    """CPU milliseconds of each question in the steps that asked it, by its name."""
    times: dict[str, list[float]] = {}
    num_running = len(stepped.scheduler.running_batch.reqs)
    for question, (policy, call) in QUESTIONS.items():
        with _policy(stepped, policy, **LIMITS | (LATE if question == "preempt" else {})):
            if question in ("order", "hold"):
                stepped.limit_running(num_running)  # who waits is asked about in every step, and stays
            times[question] = _asked(stepped, call, 8 * rounds)
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


def _asked(stepped: SteppedScheduler, call: str, count: int) -> list[float]:
    asking, scheduler = stepped.loop.driver.asking, stepped.scheduler
    times: list[float] = []
    setattr(asking, call, timed(getattr(asking, call), times))
    while len(times) < count + MOST_LOOKED_AT // 8:  # until all that wait have been looked up
        while len(scheduler.waiting_queue) <= MOST_LOOKED_AT:
            stepped.send(PROMPT, 1)
        stepped.abort(scheduler.waiting_queue[0].rid)
        stepped.send(PROMPT, 1)
        stepped.step()
    return times[-count:]


def timed(call: Callable[..., Any], times: list[float]) -> Callable[..., Any]:
    """The call, with its CPU milliseconds noted."""

    def noting(*args: Any) -> Any:
        start = time.thread_time()
        try:
            return call(*args)
        finally:
            times.append((time.thread_time() - start) * 1e3)

    return noting
