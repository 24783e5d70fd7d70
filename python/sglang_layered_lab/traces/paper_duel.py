"""Duels on paper: policy auto beside fixed settings, with the step times and the surprises of a recorded run.

All settings take turns on one server, as in `scripts/auto/duel-*.toml`, and auto learns in its own turns. A
trace is enough to try a rule of it on hundreds of prompts within seconds. Random numbers have a seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from sglang_layered.auto.policy import AutoPolicy
from sglang_layered.auto.step_times import StepTimes, amounts
from sglang_layered.core.pacing import DeviceRates, PaceView, QueueView, Start, StepLoad
from sglang_layered.core.plan import LayerGroupPlan
from sglang_layered.errors import BenchError
from sglang_layered_lab.bench.compare import soonest
from sglang_layered_lab.traces.run_model import RunModel
from sglang_layered_lab.traces.trace import Trace

STEPS_TO_LEARN = 60  # of a trace, before its steps are held against their predictions
HELD = 0.99  # part of the gaps inside a limit that counts as holding it
BLOCK = 20  # surprises that are drawn together: a slow moment lasts
CONTEXT_TOKENS = 600  # of each stream
PRIOR = Start(DeviceRates(byte_s=1e-10, flop_s=5e-11, layer_call_s=1e-3))
PROMPTS_A_TURN, STEPS_BETWEEN = 2, 6


@dataclass(frozen=True, slots=True)
class Setting:
    """One arm: a limit for auto, or fixed groups of cohorts of so many tokens."""

    name: str
    limit_s: float | None = None
    num_groups: int = 1
    cohort_tokens: int = 8192


@dataclass(frozen=True, slots=True)
class Point:
    """A prompt length beside so many streams."""

    tokens: int
    streams: int


@dataclass(slots=True)
class Outcome:
    """Of one setting at one point: times to first token, and the gaps of the streams meanwhile."""

    ttfts_s: list[float] = field(default_factory=list)
    gaps_s: list[float] = field(default_factory=list)

    @property
    def ttft_s(self) -> float:
        """The mean."""
        return float(np.mean(self.ttfts_s))

    def share(self, limit_s: float) -> float:
        """Part of the gaps inside a limit."""
        return float(np.mean(np.array(self.gaps_s) <= limit_s))


def surprises_of(trace: Trace) -> tuple[float, ...]:
    """Seen over predicted, of steps with prompt and decode rows, each predicted before it was learned.

    Raises:
        BenchError: the trace is too short.
    """
    times, found = StepTimes(), []
    for index, step in enumerate(trace.steps):
        predicted_s = times.observe(amounts(trace.sizes, step.load), max(step.duration_s, 1e-9))
        if index >= STEPS_TO_LEARN and step.load.prompt_layers and step.load.decode_rows:
            found.append(step.duration_s / predicted_s)
    if len(found) < 2 * BLOCK:
        raise BenchError(
            f"the trace has {len(found)} steps of prompts beside decodes after the first {STEPS_TO_LEARN};"
            f" {2 * BLOCK} are needed: record a longer run"
        )
    middle = float(np.median(found))
    return tuple(each / middle for each in found)


@dataclass(slots=True)
class PaperServer:
    """Decoding streams and one prompt at a time; steps take their predicted time times a drawn surprise."""

    model: RunModel
    surprises: Sequence[float]
    dice: np.random.Generator
    policy: AutoPolicy = field(default_factory=AutoPolicy)
    now_s: float = 0.0
    heard_s: float = 0.0
    _drawn: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        """The policy begins with a prior that knows nothing of this model."""
        self.policy.begin(self.model.sizes, (), PRIOR)

    def decode(self, point: Point, setting: Setting, times: int) -> None:
        """Steps without a prompt."""
        load = StepLoad(point.streams, CONTEXT_TOKENS * point.streams)
        for _ in range(times):
            self._step(load, setting, is_paced=False)

    def prompt(self, point: Point, setting: Setting) -> tuple[float, list[float]]:
        """Serve one; gives its time to first token and the gap of each step."""
        began_s, done = self.now_s, 0
        gaps_s: list[float] = []
        while done < point.tokens:
            rows = min(self._cohort_tokens(point, setting, done), point.tokens - done)
            gaps_s += self._cohort(point.streams, setting, rows, done)
            done += rows
        return self.now_s - began_s, gaps_s

    def _cohort_tokens(self, point: Point, setting: Setting, done: int) -> int:
        if setting.limit_s is None:
            return setting.cohort_tokens
        context = CONTEXT_TOKENS * point.streams
        left = (point.tokens - done,)
        view = QueueView(left, (done,), point.streams, context, self._due_s(setting), setting.cohort_tokens)
        return self.policy.cohort_tokens(view)

    def _cohort(self, streams: int, setting: Setting, rows: int, done: int) -> list[float]:
        sizes, layer = self.model.sizes, 0
        gaps_s: list[float] = []
        plan = LayerGroupPlan.even(sizes.num_layers, setting.num_groups)
        load = StepLoad(streams, CONTEXT_TOKENS * streams, (rows,), (done,))
        while layer < sizes.num_layers:
            if setting.limit_s is None:
                end = next(group.end for group in plan.groups if group.start == layer)
            else:
                view = PaceView(load, layer, self._due_s(setting))
                end = min(layer + self.policy.next_layers(view).layers, sizes.num_layers)
            weight = sizes.weight(layer, end)
            step = StepLoad(streams, CONTEXT_TOKENS * streams, (rows,), (done,), weight)
            gaps_s.append(self._step(step, setting))
            layer = end
        return gaps_s

    def _due_s(self, setting: Setting) -> float | None:
        return None if setting.limit_s is None else self.heard_s + setting.limit_s - self.now_s

    def _step(self, load: StepLoad, setting: Setting, is_paced: bool = True) -> float:
        took_s = self.model.step_s(load) * self._surprise()
        self.now_s += took_s + self.model.between_s
        gap_s, self.heard_s = self.now_s - self.heard_s, self.now_s
        if setting.limit_s is not None:
            self.policy.observe(load, took_s)
            self.policy.observe_gap(gap_s, is_paced)
        return gap_s

    def _surprise(self) -> float:
        if not self._drawn:
            first = int(self.dice.integers(0, len(self.surprises) - BLOCK))
            self._drawn = list(self.surprises[first : first + BLOCK])
        return self._drawn.pop()


def duel(
    trace: Trace, points: Sequence[Point], settings: Sequence[Setting], rounds: int, seed: int
) -> dict[tuple[Point, str], Outcome]:
    """All settings at all points, in turns, in an order drawn for each round and point."""
    dice = np.random.default_rng(seed)
    server = PaperServer(RunModel.of(trace.steps, trace.sizes), surprises_of(trace), dice)
    found = {(point, setting.name): Outcome() for point in points for setting in settings}
    for _ in range(rounds):
        for point in points:
            for index in dice.permutation(len(settings)):
                setting = settings[index]
                server.policy.tbt_limit_s = setting.limit_s
                server.decode(point, setting, STEPS_BETWEEN)
                for _ in range(PROMPTS_A_TURN):
                    ttft_s, gaps_s = server.prompt(point, setting)
                    outcome = found[point, setting.name]
                    outcome.ttfts_s.append(ttft_s)
                    outcome.gaps_s += gaps_s
                    server.decode(point, setting, STEPS_BETWEEN)
    return found


@dataclass(slots=True)
class Tally:
    """Over many duels, of auto at one point under one limit."""

    num_held: int = 0  # duels in which auto held it
    num_fixed: int = 0  # in which a fixed setting did
    num_both: int = 0
    num_late: int = 0
    num_gaps: int = 0
    ratios: list[float] = field(default_factory=list)  # auto's TTFT over that of the soonest fixed one

    def add(self, own: Outcome, fixed: Sequence[Outcome], limit_s: float) -> None:
        """One duel more."""
        best = soonest(fixed, lambda each: each.share(limit_s) >= HELD)
        holds = own.share(limit_s) >= HELD
        self.num_held, self.num_fixed = self.num_held + holds, self.num_fixed + (best is not None)
        self.num_both += holds and best is not None
        self.num_late += sum(gap_s > limit_s for gap_s in own.gaps_s)
        self.num_gaps += len(own.gaps_s)
        if best is not None:
            self.ratios.append(own.ttft_s / best.ttft_s)


def fixed_settings(num_layers: int, chunks: Sequence[int]) -> list[Setting]:
    """Group counts in powers of two, and chunks that run all layers in one step."""
    counts = [2**power for power in range(num_layers.bit_length()) if 2**power <= num_layers]
    groups = [Setting(f"G={count}", num_groups=count) for count in counts]
    return groups + [Setting(f"chunk {chunk}", cohort_tokens=chunk) for chunk in chunks]


def tallies(
    trace: Trace,
    points: Sequence[Point],
    limits_s: Sequence[float],
    chunks: Sequence[int],
    rounds: int,
    seeds: int,
) -> dict[tuple[Point, float], Tally]:
    """As many duels as seeds."""
    fixed = fixed_settings(trace.sizes.num_layers, chunks)
    named = [(limit_s, Setting(f"auto {limit_s:g}", limit_s)) for limit_s in limits_s]
    found = {(point, limit_s): Tally() for point in points for limit_s in limits_s}
    for seed in range(seeds):
        outcomes = duel(trace, points, [*fixed, *(each for _, each in named)], rounds, seed)
        for point in points:
            others = [outcomes[point, each.name] for each in fixed]
            for limit_s, each in named:
                found[point, limit_s].add(outcomes[point, each.name], others, limit_s)
    return found
