"""How long steps took in a recorded run, fitted to its trace, and a policy that knows it too."""

import statistics
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import cast

from sglang_layered.auto.policy import AutoPolicy
from sglang_layered.auto.step_times import Amounts, StepTimes, amounts
from sglang_layered.core.capability import Capability, capabilities_of
from sglang_layered.core.pacing import DeviceRates, ModelSizes, Start, StepLoad, StepPolicy
from sglang_layered.core.policy import GroupPolicy
from sglang_layered.errors import BenchError
from sglang_layered_lab.traces.trace import Trace, TracedStep

PASSES = 3  # over the steps
UNKNOWN_RATES = DeviceRates(byte_s=1e-10, flop_s=1e-11, layer_call_s=1e-4)  # a trace tells none


def learned(seen: Sequence[tuple[Amounts, float]], prior: Sequence[tuple[Amounts, float]] = ()) -> StepTimes:
    """The scheduler's model after it has seen these steps several times, all of equal weight.

    Args:
        seen: amounts and seconds of each.
        prior: imagined steps, for what no step shows.
    """
    times = StepTimes(prior, forget=1.0)
    for row, duration_s in PASSES * list(seen):
        times.observe(row, duration_s)
    return times


@dataclass(frozen=True, slots=True)
class RunModel:
    """Of a trace: how long steps take, what passes between two of them, steps that a token waits for.

    With `is_apart` most of its layered steps ran prompt and decode rows in a forward each.
    """

    sizes: ModelSizes
    times: StepTimes
    between_s: float
    delay_steps: int
    is_apart: bool = False

    @classmethod
    def of(cls, steps: Sequence[TracedStep], sizes: ModelSizes) -> "RunModel":
        """Fit to a trace.

        Raises:
            BenchError: requests had drafts: their tokens a step, and what is beside them, are not known here.
        """
        _refuse_drafts(steps)
        seen = [(amounts(sizes, each.load), max(each.duration_s, 1e-9)) for each in steps]
        times = learned(seen)
        times.settle(seen)
        busy: list[float] = []
        waits: list[bool] = []
        for each, later in pairwise(steps):
            if later.load.decode_rows:
                busy.append(later.start_s - (each.start_s + each.duration_s))
            if later.step == each.step + 1:
                waits.append(each.time_s >= later.start_s + later.duration_s)
        delay = int(bool(waits) and statistics.mean(waits) > 0.5)
        apart = [each.load.is_apart for each in steps if each.load.prompt_rows and each.load.decode_rows]
        is_apart = 2 * sum(apart) > len(apart)
        return cls(sizes, times, max(statistics.median(busy), 0.0) if busy else 0.0, delay, is_apart)

    def step_s(self, load: StepLoad) -> float:
        """Seconds of a step."""
        return self.times.predict(amounts(self.sizes, load))

    def at_speed_of(self, steps: Sequence[TracedStep]) -> "tuple[RunModel, float]":
        """The same with the machine of another run, and how long its steps took over what was predicted."""
        took_s = sum(each.duration_s for each in steps)
        factor = took_s / sum(self.step_s(each.load) for each in steps)
        return replace(self, times=self.times.scaled(factor), between_s=factor * self.between_s), factor


def _refuse_drafts(steps: Sequence[TracedStep]) -> None:
    for each, later in pairwise(steps):
        if later.step != each.step + 1:
            continue  # others lie between, as those of an encoder
        gained = [tokens - each.decode.get(name, tokens) for name, tokens in later.decode.items()]
        if max(gained, default=0) > 1:
            raise BenchError(
                f"step {later.step} of the trace gave a request {max(gained)} tokens, as drafts do, and a"
                " replayed step gives one; record a trace without --speculative-algorithm"
            )


def ready_policy(policy: GroupPolicy, model: RunModel, trace: Trace) -> GroupPolicy:
    """A policy that knows what the trace's steps took: `auto` as the model does, others hear of each."""
    can = capabilities_of(policy)
    if not can & {Capability.LEARNS, Capability.PACES_STEPS}:
        return policy
    on_steps = cast("StepPolicy", policy)
    on_steps.begin(model.sizes, (), Start(UNKNOWN_RATES))
    if isinstance(policy, AutoPolicy):
        policy.times = deepcopy(model.times)
    elif Capability.LEARNS in can:
        for each in trace.steps:
            on_steps.observe(each.load, each.duration_s)
    return policy
