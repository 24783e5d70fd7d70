"""What docs/adaptive.md says was measured is what the records say."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from itertools import permutations
from pathlib import Path
from statistics import median

import numpy as np
import pytest

from sglang_layered.auto.step_times import StepTimes, amounts
from sglang_layered.core.policy import FixedCountPolicy
from sglang_layered_lab.bench.beside import gaps_beside
from sglang_layered_lab.bench.limits import DEFAULT_SHARE, LimitRow, Rival, kept_of, limit_of, limit_rows
from sglang_layered_lab.bench.ratios import Ratio, ratio
from sglang_layered_lab.bench.sweep_result import CellResult, SweepResult
from sglang_layered_lab.traces.replay import Replay, Request, requests_of, served_of
from sglang_layered_lab.traces.run_model import RunModel
from sglang_layered_lab.traces.trace import Trace, read_trace

REPO = Path(__file__).resolve().parents[2]
RECORDS = REPO / "results" / "auto"
NUM_LAYERS = 8
LATER = {"never-worse": "2026-12-01"}  # in bfloat16 on a machine that has it
MEANS = ("ttft_mean", "tpot_mean", "e2e_mean")
DUELS, AUTO, LIMIT_S = (512, 2048, 6000), "auto-320", 0.32  # the latter of bursts and ramp
REPLAYED = ((None, "mean"), (0.5, "p50"), (0.99, "p99"))


@cache
def text() -> str:
    return " ".join((REPO / "docs" / "adaptive.md").read_text().split())


@cache
def sweep(name: str) -> SweepResult:
    return SweepResult.read(RECORDS / f"{LATER.get(name, '2026-11-28')}-2cores-{name}")


def said_of_duel(tokens: int) -> list[str]:
    """Who holds how many points, and what auto's TTFT is over the best fixed setting's."""
    rows = limit_rows(sweep(f"duel-{tokens}"))
    kept = [row.own.share >= DEFAULT_SHARE for row in rows]
    others = [bool(row.rivals) for row in rows]
    both = sum(own and other for own, other in zip(kept, others, strict=True))
    best = list(best_rivals(rows))
    ratios = [rival.over.value for rival in best if rival.over is not None]
    verdicts = [rival.verdict for rival in best]
    rule = sum(rule_holds(row, tokens) for row in rows)
    return [
        f"| {tokens} | {len(rows)} | {sum(others)} | {rule} | {sum(kept)} | {both} |"
        f" {median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f} |"
        f" {verdicts.count('yes')}, {verdicts.count('no')},"
        f" {len(verdicts) - verdicts.count('yes') - verdicts.count('no')} |",
    ]


def said_of_all_duels() -> list[str]:
    """Points that auto holds: all that a fixed setting holds, and others; nowhere surely above in TTFT."""
    rows = [row for tokens in DUELS for row in limit_rows(sweep(f"duel-{tokens}"))]
    held = [row.own.share >= DEFAULT_SHARE for row in rows]
    assert all(own for own, row in zip(held, rows, strict=True) if row.rivals)
    assert all(rival.verdict != "no" for rival in best_rivals(rows))
    number = sum(bool(row.rivals) for row in rows)
    return [f"holds all {number} points that a fixed setting holds, and {sum(held) - number} that none does"]


def said_of_cold_start() -> list[str]:
    rows = limit_rows(sweep("duel-512-cold"))
    held = [row for row in rows if row.rivals and row.own.share >= DEFAULT_SHARE]
    best = list(best_rivals(rows))
    above = [rival.over.value for rival in best if rival.over is not None and rival.verdict == "no"]
    return [
        f"it held {len(held)} of the {len(best)} points that a fixed setting holds, and its TTFT was"
        f" certainly more than 1.05 times at {len(above)}: " + " and ".join(f"{value:.2f}" for value in above)
    ]


def best_rivals(rows: list[LimitRow]) -> Iterator[Rival]:
    for row in rows:
        if row.rivals:
            yield min(row.rivals, key=lambda rival: rival.kept.ttft_s)


def rule_holds(row: LimitRow, tokens: int) -> bool:
    """The paper's rule: a group per 512 tokens, at most one a layer."""
    cells = sweep(f"duel-{tokens}").at(row.point)
    [cell] = [cell for cell in cells if cell.arm == f"groups-{min(NUM_LAYERS, -(-tokens // 512))}"]
    kept = kept_of(cell, row.limit_s)
    return kept is not None and kept.share >= DEFAULT_SHARE


def said_of_the_machine() -> list[str]:
    """How far apart arms of the same steps are; who holds a limit in one half of the rounds and the other."""
    found = sweep("duel-512")
    same = [
        over
        for point in found.points
        for arm, other in permutations(("groups-1", "chunk-512"), 2)
        if (over := ratio(found, "ttft_mean", arm, other, point)) is not None
    ]
    farthest = max(same, key=lambda over: over.value)
    assert farthest.interval is not None
    duels = [sweep(f"duel-{tokens}") for tokens in DUELS]
    held = [each for found in duels for point in found.points for each in halves(found.at(point))]
    best, auto = (sum(each) for each in zip(*held, strict=True))
    return [
        f"{farthest.value:.2f} times [{farthest.interval.low:.2f}, {farthest.interval.high:.2f}]",
        f"at {best} of {len(held)} points, `auto` at {auto}",
        "one step in a hundred takes {:.2f} and {:.2f} times its prediction".format(*map(surprise, (2, 8))),
    ]


def surprise(num_groups: int) -> float:
    """Of a replay trace's prompt steps beside decodes, after 80 steps: the p99 of seen to predicted."""
    [trace] = traces("replay", num_groups)
    times, ratios = StepTimes(), []
    for index, step in enumerate(trace.steps):
        row = amounts(trace.sizes, step.load)
        predicted_s = times.observe(row, step.duration_s)
        if index > 80 and step.load.prompt_layers and step.load.decode_rows:
            ratios.append(step.duration_s / predicted_s)
    return float(np.quantile(ratios, 0.99))


def halves(cells: list[CellResult]) -> Iterator[tuple[bool, bool]]:
    """Whether the best fixed arm of one half of the rounds, and auto, hold each limit in the other half."""
    fixed = [cell for cell in cells if limit_of(cell) is None]
    rounds = range(len(cells[0].record.repetitions))
    parts = rounds[: len(rounds) // 2], rounds[len(rounds) // 2 :]
    for auto in (cell for cell in cells if limit_of(cell) is not None):
        limit_s = limit_of(auto)
        assert limit_s is not None
        for seen, other in (parts, parts[::-1]):
            kept = [cell for cell in fixed if share_of(cell, limit_s, seen) >= DEFAULT_SHARE]
            if kept:
                best = min(kept, key=lambda cell: cell.rounds.ttft_mean.iloc[list(seen)].mean())
                held = [share_of(cell, limit_s, other) >= DEFAULT_SHARE for cell in (best, auto)]
                yield held[0], held[1]


def share_of(cell: CellResult, limit_s: float, rounds: range) -> float:
    runs = [cell.record.repetitions[index] for index in rounds]
    return float(
        np.mean(np.concatenate([gaps_beside(run.traces, run.background) for run in runs]) <= limit_s)
    )


def said_of_changing_load(name: str) -> list[str]:
    """Gaps inside, requests within both limits, TTFT over that of the two fixed settings that met most."""
    found = sweep(name)
    cells = {cell.arm: cell for cell in found.at({})}
    kept = {arm: kept_of(cell, LIMIT_S) for arm, cell in cells.items()}
    shares = {arm: 100 * each.share for arm, each in kept.items() if each is not None}
    met = {arm: 100 * (cell.mean("attainment") or 0.0) for arm, cell in cells.items()}
    fixed = sorted((arm for arm in cells if arm != AUTO), key=lambda arm: -met[arm])
    best, second, *others = fixed
    over = {arm: ratio(found, "ttft_mean", AUTO, arm, {}) for arm in (best, second)}
    least, most = (extreme(shares[arm] for arm in fixed) for extreme in (min, max))
    return [
        f"`auto` held {shares[AUTO]:.1f} % of the gaps, fixed settings {least:.1f} to {most:.1f} %",
        f"both limits with {met[AUTO]:.0f} % of the requests, {cells[best].label} with {met[best]:.0f} %,"
        f" {cells[second].label} with {met[second]:.0f} %, the others with {met[others[-1]]:.0f} to"
        f" {met[others[0]]:.0f} %",
        "TTFT over that of "
        + "; of ".join(
            f"{cells[arm].label}: {shown(each)}" for arm, each in over.items() if each is not None
        ),
    ]


def said_of_default() -> list[str]:
    found, metrics = sweep("never-worse"), (*MEANS, "tbt_p99")
    pairs = [(metric, point) for point in found.points for metric in metrics]
    over = [ratio(found, metric, "auto", "default", point) for metric, point in pairs]
    return [shown(each) for each in over if each is not None]


def said_of_overtaking() -> list[str]:
    """The least and the most of each figure over the points, with overtaking over without."""
    found, lines, own = sweep("never-worse"), list[str](), f"{AUTO}-overtaking"
    for metric in MEANS:
        over = [ratio(found, metric, "auto-overtaking", "auto", point) for point in found.points]
        ratios = [(each.value, each.interval) for each in over if each is not None and each.interval]
        assert all(interval.low < 1 < interval.high for _, interval in ratios)
        lines.append(f"{metric[:-5].upper()} {min(ratios)[0]:.2f} to {max(ratios)[0]:.2f}")
    for name, metrics in (("ramp", MEANS[:1]), ("bursts", MEANS)):
        load = SweepResult.read(RECORDS / f"2026-12-01-2cores-{name}")
        lines += [shown(each) for metric in metrics if (each := ratio(load, metric, own, AUTO, {}))]
    return lines


def said_without_overlap() -> list[str]:
    found = sweep("never-worse-no-overlap")
    lines = []
    for name, metric in (
        ("TTFT", "ttft_mean"),
        ("TPOT", "tpot_mean"),
        ("E2E", "e2e_mean"),
        ("tokens/s of the whole run", "whole_rate"),
        ("the worst gap", "tbt_worst"),
        ("the p99 of gaps", "tbt_p99"),
    ):
        both = [ratio(found, metric, "auto", "default", point) for point in found.points]
        lines.append(f"{name} " + " and ".join(shown(over) for over in both if over is not None))
    return lines


def shown(over: Ratio) -> str:
    assert over.interval is not None
    return f"{over.value:.2f} [{over.interval.low:.2f}, {over.interval.high:.2f}]"


def said_of_replay() -> list[str]:
    lines = []
    for recorded, wanted in ((2, 8), (8, 2)):
        trace, other = traces("replay", recorded, wanted)
        truth = times_of(served_of(other.steps))
        model = RunModel.of(trace.steps, trace.sizes)
        at_speed, factor = model.at_speed_of(other.steps)
        most = []
        for each in (at_speed, model):
            off = errors(each, trace, truth, wanted)
            most.append(max(map(abs, off.values())))
            if each is at_speed:
                lines.append(f"TTFT {100 * off['TTFT mean']:+.1f} %, TBT {100 * off['TBT mean']:+.1f} %")
                lines.append(f"{sum(abs(part) <= 0.1 for part in off.values())} of {len(off)}")
        lines.append(f"{100 * most[0]:.1f} %; {100 * most[1]:.1f} % without it; factor {factor:.2f}")
    return lines


def said_of_noisy_replay() -> list[str]:
    """Both directions at the machine's speed: the largest errors of means and medians, and those of p99."""
    off: dict[str, list[float]] = {}
    for recorded, wanted in ((2, 8), (8, 2)):
        trace, other = traces("replay-noisy", recorded, wanted)
        model, _ = RunModel.of(trace.steps, trace.sizes).at_speed_of(other.steps)
        for name, part in errors(model, trace, times_of(served_of(other.steps)), wanted).items():
            off.setdefault(name.split()[1], []).append(100 * abs(part))
    p99 = off["p99"]
    return [
        f"means are off by at most {max(off['mean']):.1f} %, medians by {max(off['p50']):.1f} %, p99 by"
        f" {min(p99):.1f} to {max(p99):.1f} %"
    ]


def traces(name: str, *group_counts: int) -> list[Trace]:
    folder = RECORDS / f"2026-11-28-2cores-{name}"
    return [read_trace(folder / f"trace-groups-{count}.jsonl.gz") for count in group_counts]


def errors(model: RunModel, trace: Trace, truth: dict[str, float], wanted: int) -> dict[str, float]:
    """What a replay with so many groups predicts over what a run with them measured, less 1."""
    found = times_of(Replay(model, FixedCountPolicy(wanted)).run(requests_of(trace.steps)))
    return {name: found[name] / truth[name] - 1 for name in truth}


def times_of(served: dict[str, Request]) -> dict[str, float]:
    values = {
        "TTFT": [each.ttft_s for each in served.values()],
        "TBT": [gap_s for each in served.values() for gap_s in each.gaps_s],
    }
    return {
        f"{name} {label}": float(np.mean(found) if quantile is None else np.quantile(found, quantile))
        for name, found in values.items()
        for quantile, label in REPLAYED
    }


@pytest.mark.parametrize("tokens", DUELS)
def test_what_auto_held_in_the_duels(tokens: int) -> None:
    for line in said_of_duel(tokens):
        assert line in text()


@pytest.mark.parametrize(
    "said",
    [
        said_of_all_duels,
        said_of_cold_start,
        said_of_the_machine,
        said_of_default,
        said_of_overtaking,
        said_without_overlap,
        said_of_replay,
        said_of_noisy_replay,
    ],
)
def test_what_else_was_measured(said: Callable[[], list[str]]) -> None:
    for line in said():
        assert line in text()


@pytest.mark.parametrize("name", ["bursts", "ramp"])
def test_auto_under_a_changing_load(name: str) -> None:
    for line in said_of_changing_load(name):
        assert line in text()
