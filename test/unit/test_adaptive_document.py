"""What docs/adaptive.md says was measured is what the records say."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from statistics import median

import numpy as np
import pytest

from sglang_layered.auto.replay import Replay, RunModel, Served, requests_of, served_of
from sglang_layered.auto.trace import read_trace
from sglang_layered.bench.limits import DEFAULT_SHARE, LimitRow, Rival, kept_of, limit_rows
from sglang_layered.bench.ratios import Ratio, ratio
from sglang_layered.bench.sweep_result import SweepResult
from sglang_layered.core.policy import FixedCountPolicy

REPO = Path(__file__).resolve().parents[2]
RECORDS = REPO / "results" / "auto"
NUM_LAYERS = 8
REPLAYED = ((None, "mean"), (0.5, "p50"), (0.99, "p99"))


@cache
def text() -> str:
    return " ".join((REPO / "docs" / "adaptive.md").read_text().split())


@cache
def sweep(name: str) -> SweepResult:
    return SweepResult.read(RECORDS / f"2026-11-22-2cores-{name}")


def said_of_duel(name: str) -> list[str]:
    """Who holds how many points, and what auto's TTFT is over the best fixed setting's."""
    rows = limit_rows(sweep(name))
    kept = [row.own.share >= DEFAULT_SHARE for row in rows]
    others = [bool(row.rivals) for row in rows]
    both = sum(own and other for own, other in zip(kept, others, strict=True))
    lost = sorted(100 * row.own.share for row in rows if row.rivals and row.own.share < DEFAULT_SHARE)
    best = list(best_rivals(rows))
    ratios = [rival.over.value for rival in best if rival.over is not None]
    verdicts = [rival.verdict for rival in best]
    return [
        f"Of {len(rows)} points",
        f"99 % of the gaps at {sum(others)}, the paper's rule at {sum(map(rule_holds, rows))}, and `auto` at"
        f" {sum(kept)}: {both} of those {sum(others)} and {sum(kept) - both} that no fixed setting holds",
        f"At the other {len(lost)} it held " + ", ".join(f"{share:.1f}" for share in lost) + " %",
        f"median {median(ratios):.2f}, from {min(ratios):.2f} to {max(ratios):.2f}",
        f"at most 1.05 at {verdicts.count('yes')}, above it at {verdicts.count('no')}, undecided at"
        f" {len(verdicts) - verdicts.count('yes') - verdicts.count('no')}",
    ]


def best_rivals(rows: list[LimitRow]) -> Iterator[Rival]:
    for row in rows:
        if row.rivals:
            yield min(row.rivals, key=lambda rival: rival.kept.ttft_s)


def rule_holds(row: LimitRow) -> bool:
    """The paper's rule: a group per 512 tokens, at most one a layer."""
    num_groups = min(NUM_LAYERS, -(-row.point["workload.lengths.prompt.tokens"] // 512))
    cells = next(
        sweep(name).at(row.point) for name in ("duel", "duel-long") if row.point in sweep(name).points
    )
    [cell] = [cell for cell in cells if cell.arm == f"groups-{num_groups}"]
    kept = kept_of(cell, row.limit_s)
    return kept is not None and kept.share >= DEFAULT_SHARE


def said_of_changing_load(name: str) -> list[str]:
    """Part of the gaps inside, and TTFT over the soonest fixed setting that holds 99 %."""
    [row] = limit_rows(sweep(name))
    own = f"{100 * row.own.share:.1f} % of the gaps"
    if not row.rivals:
        return [own, "no fixed setting holds 99 %"]
    [rival] = best_rivals([row])
    assert rival.over is not None
    return [own, f"{arm_label(name, rival)}: {shown(rival.over)}"]


def said_of_attainment(name: str) -> str:
    """Parts of the requests that met both limits, by auto and by fixed settings that hold fewer than all."""
    met = {cell.arm: cell.mean("attainment") for cell in sweep(name).at({})}
    assert {arm for arm, share in met.items() if share == 1} == {"auto-150", "groups-8"}
    others = [share for share in met.values() if share is not None and share < 1]
    return f"the others met them with {100 * min(others):.0f} to {100 * max(others):.0f} %"


def arm_label(name: str, rival: Rival) -> str:
    return next(cell.label for cell in sweep(name).at({}) if cell.arm == rival.kept.arm)


def said_of_default() -> list[str]:
    found = sweep("never-worse")
    lines = []
    for point in found.points:
        for metric in ("ttft_mean", "tpot_mean", "e2e_mean", "tbt_p99"):
            over = ratio(found, metric, "auto", "default", point)
            assert over is not None
            lines.append(shown(over))
    return lines


def shown(over: Ratio) -> str:
    assert over.interval is not None
    return f"{over.value:.2f} [{over.interval.low:.2f}, {over.interval.high:.2f}]"


def said_of_replay() -> list[str]:
    lines = []
    for recorded, wanted in ((2, 8), (8, 2)):
        folder = RECORDS / "2026-11-22-2cores-replay"
        trace, other = (read_trace(folder / f"trace-groups-{count}.jsonl.gz") for count in (recorded, wanted))
        truth = times_of(served_of(other.steps))
        model = RunModel.of(trace.steps, trace.sizes)
        at_speed, factor = model.at_speed_of(other.steps)
        most = []
        for each in (at_speed, model):
            found = times_of(Replay(each, FixedCountPolicy(wanted)).run(requests_of(trace.steps)))
            off = [found[name] / truth[name] - 1 for name in truth]
            most.append(max(map(abs, off)))
            mean_off = [found[f"{name} mean"] / truth[f"{name} mean"] - 1 for name in ("TTFT", "TBT")]
            if each is at_speed:
                lines.append(f"TTFT {100 * mean_off[0]:+.1f} %, TBT {100 * mean_off[1]:+.1f} %")
                lines.append(f"{sum(abs(part) <= 0.1 for part in off)} of {len(off)}")
        lines.append(f"{100 * most[0]:.1f} %; {100 * most[1]:.1f} % without it; factor {factor:.2f}")
    return lines


def times_of(served: dict[str, Served]) -> dict[str, float]:
    values = {
        "TTFT": [each.ttft_s for each in served.values()],
        "TBT": [gap_s for each in served.values() for gap_s in each.gaps_s],
    }
    return {
        f"{name} {label}": float(np.mean(found) if quantile is None else np.quantile(found, quantile))
        for name, found in values.items()
        for quantile, label in REPLAYED
    }


@pytest.mark.parametrize("name", ["duel", "duel-long"])
def test_what_auto_held_in_the_duels(name: str) -> None:
    for line in said_of_duel(name):
        assert line in text()


def test_auto_under_bursts() -> None:
    assert said_of_attainment("bursts") in text()
    for line in said_of_changing_load("bursts"):
        assert line in text()


def test_the_rehearsal_as_a_default() -> None:
    for line in said_of_default():
        assert line in text()


def test_what_replay_predicts() -> None:
    for line in said_of_replay():
        assert line in text()


def test_the_cost_of_deciding_is_that_of_its_records() -> None:
    usual, slower = (
        json.loads((REPO / "results" / "scheduler-cost" / f"2026-11-22-2cores{name}.json").read_text())[
            "summary"
        ]
        for name in ("", "-slower")
    )
    assert f"take {usual['deciding']['median_ms']:.3f} ms of CPU a step" in text()
    assert f"takes {usual['stock']['median_ms']:.1f} ms" in text()
    assert f"{slower['deciding']['median_ms']:.3f} beside {slower['stock']['median_ms']:.1f} ms" in text()
