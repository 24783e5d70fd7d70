"""What the pictures of a sweep show, computed from its records. Pure: it draws nothing.

Values of several rounds are means over rounds, attainment is of the requests of all rounds together.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import inf, nan
from typing import Any

import numpy as np
import pandas as pd

from sglang_layered_lab.bench.beside import gaps_beside
from sglang_layered_lab.bench.compare import Point, pareto_set
from sglang_layered_lab.bench.record import Repetition
from sglang_layered_lab.bench.scalars import PHASES
from sglang_layered_lab.bench.sweep_result import CellResult, SweepResult
from sglang_layered_lab.bench.trace import RequestTrace

RATE = "load.rate_per_s"
JOULES = {"prompt token": "joules_prompt", "output token": "joules_output", "token": "joules_total"}
BESIDE = {
    "beside_worst": "worst gap of running streams beside a prompt",
    "beside_p99": "p99 of gaps of running streams beside a prompt",
}
ALL_GAPS = {"tbt_worst": "worst gap between tokens", "tbt_p99": "p99 of all gaps between tokens"}
TAIL = 0.25  # of the longest prefill: how much longer the background is shown
SINCE_DUE = "seconds since the request was due   ·   mark: its first token"
SINCE_SENT = "seconds since the prompt was sent   ·   mark: the prompt's first token"

Rounds = Mapping[str, Sequence[Repetition]]  # by arm, the rounds that all arms have


def titles_of(cells: Sequence[CellResult]) -> dict[str, str]:
    """What to call each arm where its mode is not shown; its name is added where two are called alike."""
    shown = {
        cell.arm: cell.label if cell.mode in cell.label else f"{cell.mode} {cell.label}" for cell in cells
    }
    alike = [title for title in shown.values() if list(shown.values()).count(title) > 1]
    return {arm: f"{title} ({arm})" if title in alike else title for arm, title in shown.items()}


def gap_scalars(cells: Sequence[CellResult]) -> Mapping[str, str]:
    """Scalars that a prefill's harm to others is seen in, worst and p99, with names in words.

    With streams in the background it is theirs, beside prompts; else it is that of all gaps.
    """
    return BESIDE if any(cell.known("beside_worst") for cell in cells) else ALL_GAPS


def arm_frame(cells: Sequence[CellResult], names: Sequence[str]) -> pd.DataFrame:
    """A row a cell. Columns: `arm`, `mode`, `label`, and its rate in requests/s where the grid has rates.

    Of each scalar its value, and the ends of its interval as `NAME_low`, `NAME_high`; NaN where it has none.
    """
    titles, rows = titles_of(cells), []
    for cell in cells:
        row = {"arm": cell.arm, "mode": cell.mode, "label": titles[cell.arm], RATE: cell.point.get(RATE)}
        for name in names:
            mean, interval = cell.mean(name), cell.interval(name)
            row[name] = nan if mean is None else mean
            row[f"{name}_low"] = row[f"{name}_high"] = nan
            if interval is not None:
                row |= {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
        rows.append(row)
    return pd.DataFrame(rows)


def pareto_points(cells: Sequence[CellResult]) -> pd.DataFrame:
    """A row an arm: `ttft_s`, `worst_tbt_s`, `p99_tbt_s`; `on_front` says by TBT if no other arm beats it.

    The two TBT are `gap_scalars`; NaN where an arm has no value. Labels are those within a mode.
    """
    columns = dict(
        zip(("ttft_mean", *gap_scalars(cells)), ("ttft_s", "worst_tbt_s", "p99_tbt_s"), strict=True)
    )
    points = arm_frame(cells, list(columns)).rename(columns=columns)
    known = points.dropna(subset=list(columns.values()))
    fronts = {
        key: {each.arm for each in pareto_set(map(Point, known.arm, known.ttft_s, known[key]))}
        for key in ("worst_tbt_s", "p99_tbt_s")
    }
    on_front = [{key: arm in front for key, front in fronts.items()} for arm in points.arm]
    return points.assign(label=[cell.label for cell in cells], on_front=on_front)


def rate_groups(result: SweepResult) -> list[dict[str, Any]]:
    """Points without their rate: one for each picture over rates. Empty where the grid has no two rates."""
    if len(result.grid.get(RATE, ())) < 2:
        return []
    others = {key: values for key, values in result.grid.items() if key != RATE}
    return [dict(zip(others, values, strict=True)) for values in product(*others.values())]


def over_rates(result: SweepResult, group: Mapping[str, Any], name: str) -> pd.DataFrame:
    """`arm_frame` of a scalar and the average decode batch, arm after arm by rising rate."""
    cells = sorted(result.at(group), key=lambda cell: (result.arms.index(cell.arm), float(cell.point[RATE])))
    return arm_frame(cells, (name, "decode_batch")).dropna(subset=[name])


def expert_bytes_of(cells: Sequence[CellResult]) -> pd.DataFrame:
    """Bytes of activated experts a request, `expert_bytes` and a column a phase; only counted arms."""
    found = arm_frame(cells, ["expert_bytes"])
    for phase in PHASES:
        found[phase] = [_mean_of_phase(cell, phase) for cell in cells]
    return found.dropna(subset=["expert_bytes"])


def _mean_of_phase(cell: CellResult, phase: str) -> float:
    counted = [each for each in cell.record.repetitions if each.usage.get("expert_bytes")]
    shares = [each.usage["expert_bytes"].get(phase, 0) / len(each.traces) for each in counted]
    return sum(shares) / len(shares) if shares else nan


@dataclass(frozen=True, slots=True)
class StreamData:
    """One stream an arm: `mode`, `label`, and its course as `times_s` and `num_tokens`.

    Its end is `end_s`; `mark_s` is where the prompt's first token is marked, if that is not the stream's own.
    `which` says which stream it is and why; `since` what its times begin with.
    """

    streams: tuple[Mapping[str, Any], ...]
    which: str
    since: str


@dataclass(frozen=True, slots=True)
class _Pause:
    """Seconds without a token of what lies at these places of the baseline's rounds."""

    pause_s: float
    round_place: int
    request: int
    background: int | None = None


def token_streams(cells: Sequence[CellResult], baseline: str) -> StreamData | None:
    """The stream with the longest pause under the baseline, the same one in every arm.

    With streams in the background it is a background stream's pause beside a prompt, else a request's own.
    None where all arms served no request alike.

    Args:
        cells: all arms at one point.
        baseline: name of the arm that chooses; the first arm does where it has no record.
    """
    rounds = _common_rounds(cells)
    chooser = baseline if baseline in rounds else next(iter(rounds), "")
    longest = max(_pauses(rounds, chooser), key=lambda each: each.pause_s, default=None)
    if longest is None:
        return None
    is_own = longest.background is None
    prompts = {arm: each[longest.round_place].traces[longest.request] for arm, each in rounds.items()}
    titles, streams = titles_of(cells), []
    shown_s = inf if is_own else (1 + TAIL) * max(map(_prefill_s, prompts.values()))
    for cell in cells:
        prompt, repetition = prompts[cell.arm], rounds[cell.arm][longest.round_place]
        stream = prompt if longest.background is None else repetition.background[longest.background]
        mark_s = {} if is_own else {"mark_s": _prefill_s(prompt)}
        course = _course(stream, prompt.due_s if is_own else prompt.sent_s, shown_s)
        streams.append({"mode": cell.mode, "label": titles[cell.arm], **course, **mark_s})
    what = "request" if is_own else f"running stream {longest.background} beside request"
    which = (
        f"{what} {longest.request} (prompt of {prompts[chooser].prompt_tokens} tokens) of repetition"
        f" {rounds[chooser][longest.round_place].index}: it has the longest pause under {titles[chooser]},"
        f" {longest.pause_s:.3g} s"
    )
    return StreamData(tuple(streams), which, SINCE_DUE if is_own else SINCE_SENT)


def _common_rounds(cells: Sequence[CellResult]) -> dict[str, list[Repetition]]:
    by_arm = {cell.arm: {each.index: each for each in cell.record.repetitions} for cell in cells}
    common = sorted(set.intersection(*map(set, by_arm.values()))) if by_arm else []
    return {arm: [rounds[index] for index in common] for arm, rounds in by_arm.items()}


def _pauses(rounds: Rounds, chooser: str) -> Iterator[_Pause]:
    """Of every request that all arms were asked for alike and served to its end."""
    has_background = all(each.background for repetitions in rounds.values() for each in repetitions)
    for place, arms in enumerate(zip(*rounds.values(), strict=True)):
        chosen = rounds[chooser][place]
        for request, traces in enumerate(zip(*(each.traces for each in arms), strict=False)):
            asked = {(trace.prompt_tokens, trace.max_output_tokens) for trace in traces}
            if len(asked) > 1 or not all(trace.error is None and trace.arrivals for trace in traces):
                continue
            prompt = chosen.traces[request]
            if not has_background:
                gaps_s = np.diff([each.time_s for each in prompt.arrivals])
                yield _Pause(float(gaps_s.max(initial=0.0)), place, request)
                continue
            for number, stream in enumerate(chosen.background):
                if len(gaps_s := gaps_beside([prompt], [stream])):
                    yield _Pause(float(gaps_s.max()), place, request, number)


def _prefill_s(prompt: RequestTrace) -> float:
    return prompt.arrivals[0].time_s - prompt.sent_s


def _course(trace: RequestTrace, zero_s: float, shown_s: float) -> dict[str, Any]:
    """What came in the first `shown_s`; where a stream was broken off before that, it ends."""
    before = max((each.num_tokens for each in trace.arrivals if each.time_s <= zero_s), default=0)
    shown = [each for each in trace.arrivals if zero_s < each.time_s <= zero_s + shown_s]
    return {
        "times_s": [each.time_s - zero_s for each in shown],
        "num_tokens": [each.num_tokens - before for each in shown],
        "end_s": min(shown_s, max(trace.arrivals[-1].time_s - zero_s, 0.0)),
    }
