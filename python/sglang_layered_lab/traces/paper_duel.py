"""Duels on paper: policy auto beside fixed settings, with the step times and the surprises of a recorded run.

All settings take turns on one server, as in `scripts/auto/duel-*.toml`, and auto learns in its own turns. A
trace is enough to try a rule of it on hundreds of prompts within seconds. Random numbers have a seed.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from sglang_layered.auto.policy import AutoPolicy
from sglang_layered.auto.step_times import StepTimes, amounts
from sglang_layered.core.pacing import DeviceRates, Start
from sglang_layered.core.policy import FixedCountPolicy
from sglang_layered.errors import BenchError
from sglang_layered_lab.bench.beside import gaps_beside
from sglang_layered_lab.bench.compare import soonest
from sglang_layered_lab.bench.trace import Arrival, RequestTrace
from sglang_layered_lab.traces.replay import Replay, Request, Running
from sglang_layered_lab.traces.run_model import RunModel
from sglang_layered_lab.traces.trace import Trace

STEPS_TO_LEARN = 60  # of a trace, before its steps are held against their predictions
HELD = 0.99  # part of the gaps inside a limit that counts as holding it
BLOCK = 20  # surprises that are drawn together: a slow moment lasts
CONTEXT_TOKENS = 600  # of each stream
PRIOR = Start(DeviceRates(byte_s=1e-10, flop_s=5e-11, layer_call_s=1e-3))  # knows nothing of the model
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


def duel(
    trace: Trace, points: Sequence[Point], settings: Sequence[Setting], rounds: int, seed: int
) -> dict[tuple[Point, str], Outcome]:
    """All settings at all points, in turns, in an order drawn for each round and point."""
    dice, auto = np.random.default_rng(seed), AutoPolicy()
    drawn = _drawn(surprises_of(trace), dice)
    server = Replay(RunModel.of(trace.steps, trace.sizes), auto, surprises=lambda: next(drawn))
    auto.begin(trace.sizes, (), PRIOR)
    found = {(point, setting.name): Outcome() for point in points for setting in settings}
    for _ in range(rounds):
        for point in points:
            for index in dice.permutation(len(settings)):
                setting = settings[index]
                auto.keep_tbt_limit(setting.limit_s)
                server.policy = FixedCountPolicy(setting.num_groups) if setting.limit_s is None else auto
                server.cohort_tokens, server.tbt_limit_s = setting.cohort_tokens, setting.limit_s
                _turn(server, point, found[point, setting.name])
    return found


def _drawn(surprises: Sequence[float], dice: np.random.Generator) -> Iterator[float]:
    while True:
        first = int(dice.integers(0, len(surprises) - BLOCK))
        yield from surprises[first : first + BLOCK]


def _turn(server: Replay, point: Point, outcome: Outcome) -> None:
    """Prompts one after another beside streams that never end; decode steps before, between and after."""
    streams = [Request("stream", server.now_s, CONTEXT_TOKENS) for _ in range(point.streams)]
    server.running = [Running(each, math.inf, CONTEXT_TOKENS) for each in streams]
    _decode(server)
    for _ in range(PROMPTS_A_TURN):
        prompt = Request("prompt", server.now_s, point.tokens)
        server.waiting.append((prompt, 0))
        while not prompt.tokens_s:
            server.serve()
        outcome.ttfts_s.append(prompt.ttft_s)
        seen = gaps_beside([_trace_of(prompt)], [_trace_of(streams[0])])  # all get their tokens together
        outcome.gaps_s += seen.tolist()
        _decode(server)


def _decode(server: Replay) -> None:
    for _ in range(STEPS_BETWEEN):
        server.serve()


def _trace_of(request: Request) -> RequestTrace:
    """What a client would have seen of it."""
    arrivals = tuple(Arrival(time_s, index + 1) for index, time_s in enumerate(request.tokens_s))
    sent_s = request.arrived_s
    return RequestTrace(request.request_id, sent_s, sent_s, request.prompt_tokens, len(arrivals), arrivals)


def verdict(own: Outcome, fixed: Sequence[Outcome], limit_s: float) -> dict[str, float]:
    """Of auto in one duel: whether it holds the limit, and a fixed setting does; gaps, and those too late.

    `ratio` is its TTFT over that of the soonest fixed setting that holds it; not a number where none does.
    """
    best = soonest(fixed, lambda each: each.share(limit_s) >= HELD)
    return {
        "holds": own.share(limit_s) >= HELD,
        "fixed": best is not None,
        "late": sum(gap_s > limit_s for gap_s in own.gaps_s),
        "gaps": len(own.gaps_s),
        "ratio": math.nan if best is None else own.ttft_s / best.ttft_s,
    }


def fixed_settings(num_layers: int, chunks: Sequence[int]) -> list[Setting]:
    """Group counts in powers of two, and chunks that run all layers in one step."""
    counts = [2**power for power in range(num_layers.bit_length()) if 2**power <= num_layers]
    groups = [Setting(f"G={count}", num_groups=count) for count in counts]
    return groups + [Setting(f"chunk {chunk}", cohort_tokens=chunk) for chunk in chunks]


def duels(
    trace: Trace,
    points: Sequence[Point],
    limits_s: Sequence[float],
    chunks: Sequence[int],
    rounds: int,
    seeds: int,
) -> pd.DataFrame:
    """As many duels as seeds: a row for each at every point under every limit, with `verdict`'s columns."""
    fixed = fixed_settings(trace.sizes.num_layers, chunks)
    named = {limit_s: Setting(f"auto {limit_s:g}", limit_s) for limit_s in limits_s}
    rows = []
    for seed in range(seeds):
        outcomes = duel(trace, points, [*fixed, *named.values()], rounds, seed)
        for point in points:
            others = [outcomes[point, each.name] for each in fixed]
            for limit_s, each in named.items():
                where = {"tokens": point.tokens, "streams": point.streams, "limit_s": limit_s}
                rows.append(where | verdict(outcomes[point, each.name], others, limit_s))
    return pd.DataFrame(rows)
