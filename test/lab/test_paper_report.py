"""REPORT.md from made-up sweeps: ratios by a slow recount, losses shown, nothing said of what was not run."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict
from pathlib import Path

import pytest

from bench_sweeps import ARMS, Made, write_sweep
from sglang_layered_lab.bench.ratios import Ratio, ratio
from sglang_layered_lab.bench.sweep_result import SweepResult
from sglang_layered_lab.models.router_calibrate import CoverageRow
from sglang_layered_lab.models.router_coverage import Coverage
from sglang_layered_lab.models.router_targets import CoverageTarget
from sglang_layered_lab.paper import capacity
from sglang_layered_lab.paper.answers import duel_rows, limit_rows
from sglang_layered_lab.paper.claims import Claim, rows
from sglang_layered_lab.paper.report import Extras, coverage_text, write_report


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> SweepResult:
    return write_sweep(tmp_path_factory.mktemp("paper") / "made-up")


def claim(arm: str, baseline: str, paper: float, study: str = "made-up") -> Claim:
    return Claim(
        "Table 0", "mean TTFT", "x", paper, study, "ttft_mean", arm, baseline, "As there.", "Not so."
    )


def test_a_ratio_is_the_geometric_mean_of_the_rounds_ratios(sweep: SweepResult) -> None:
    found = ratio(sweep, "ttft_mean", "layered-4", "mixed-512")
    first, second = sweep.of_arm("layered-4")[0], sweep.of_arm("mixed-512")[0]
    pairs = zip(first.known("ttft_mean"), second.known("ttft_mean"), strict=True)
    logs = [math.log(one / other) for one, other in pairs]
    assert found is not None and found.interval is not None
    assert found.value == pytest.approx(math.exp(sum(logs) / len(logs)))
    assert found.is_below and not found.is_above
    assert ratio(sweep, "ttft_mean", "layered-4", "no-such-arm") is None
    assert ratio(sweep, "joules_total", "layered-4", "mixed-512") is None


def test_changes_are_written_with_their_sign() -> None:
    assert Ratio(0.44, None).as_change() == "\N{MINUS SIGN}56 %"
    assert Ratio(1.52, None).as_change() == "+52 %"
    assert Ratio(13.37, None).as_times() == "13.4 times"


@pytest.mark.parametrize(
    ("arm", "baseline", "paper", "expected"),
    [
        ("layered-4", "mixed-512", 0.5, "As there."),
        ("layered-4", "mixed-512", 1.5, "The other direction. Not so."),
        ("layered-4", "layered-4-again", 0.5, "not measured"),
    ],
)
def test_a_row_says_whether_the_direction_is_the_papers(
    sweep: SweepResult, arm: str, baseline: str, paper: float, expected: str
) -> None:
    row = claim(arm, baseline, paper).row({"made-up": sweep})
    assert expected in (row.why, row.ours)
    missing = claim(arm, baseline, paper, study="other").row({"made-up": sweep})
    assert missing.ours == "not measured" and "other" in missing.why


def test_equal_arms_are_undecided(tmp_path: Path) -> None:
    arms = {"one": ARMS["layered-4"], "two": ARMS["layered-4"]}
    made = write_sweep(tmp_path / "same", arms=arms)
    row = claim("one", "two", 0.5).row({"made-up": made})
    assert row.why == "Undecided: the interval holds no change, and not the paper's ratio. Not so."
    near = claim("one", "two", 1.0001).row({"made-up": made})
    assert near.why.startswith("Undecided: the interval holds the paper's ratio")


def test_the_report_names_what_loses_and_links_what_exists(sweep: SweepResult, tmp_path: Path) -> None:
    slow = {"mixed-512": ARMS["mixed-512"], "layered-8": Made("layered", "G=8", 9.0, 0.14)}
    losing = write_sweep(tmp_path / "losing", arms=slow, name="losing", title="It loses")
    write_sweep(tmp_path / "made-up")
    path = write_report([losing], tmp_path, "a command", Extras(missing_energy=("no counter here",)))
    text = path.read_text()
    losses = text.partition("## Where layered prefill loses")[2].partition("\n## ")[0]
    assert re.search(r"losing \| all \| .*G=8.* \| TTFT, mean \| .*worse", losses)
    assert "Energy: no counter here" in text and "`a command`" in text
    targets = re.findall(r"\]\(([^)]+)\)", text)
    assert targets and all((tmp_path / target).exists() for target in targets)
    assert "not measured" in text  # claims whose studies were not run


def test_duels_and_limits_are_those_of_a_slow_recount(sweep: SweepResult) -> None:
    rows = list(duel_rows([sweep]))
    means = {
        arm: (sweep.of_arm(arm)[0].mean("ttft_mean"), sweep.of_arm(arm)[0].mean("tbt_worst"))
        for arm in sweep.arms
    }
    assert len(rows) == 3
    for row, name in zip(rows, ("default", "mixed-512", "mixed-1024"), strict=True):
        fitting = [arm for arm in means if arm.startswith("layered") and means[arm][1] <= means[name][1]]
        best = min(fitting, key=lambda arm: means[arm][0])
        assert ARMS[best].label in row[3]
    for _, _, limit, _, other, _, layered, outcome in limit_rows([sweep]):
        limit_s = float(limit.removesuffix(" ms")) / 1e3 + 5e-4
        kept = {arm: ttft for arm, (ttft, tbt) in means.items() if tbt <= limit_s}
        of_layered = [ttft for arm, ttft in kept.items() if arm.startswith("layered")]
        assert (layered == "-") == (not of_layered)
        if of_layered and other != "-":
            assert outcome.startswith("layered wins") == (float(layered) < float(other))


def test_energy_is_compared_at_each_arms_own_top_rate(tmp_path: Path) -> None:
    arms = {"mixed-64": ARMS["mixed-512"], "layered": ARMS["layered-4"]}
    made = write_sweep(
        tmp_path / "rates", arms=arms, rates=(0.1, 0.2), num_requests=20, joules=1.0, name="rates-arxiv"
    )
    last = list(rows({"rates-arxiv": made}, "cpu"))[-1]
    joules = [capacity.joules_at_top_rate(made, arm) for arm in ("layered", "mixed-64")]
    if None in joules:
        assert last.ours == "not measured"
    else:
        assert last.ours == Ratio(joules[0] / joules[1], None).as_change()  # type: ignore[operator]
    without = write_sweep(tmp_path / "none", arms=arms, rates=(0.1, 0.2), name="rates-arxiv")
    assert list(rows({"rates-arxiv": without}, "cpu"))[-1].ours == "not measured"


def test_coverage_is_shown_for_every_target(tmp_path: Path) -> None:
    def measured(mean: float) -> Coverage:
        return Coverage(mean, 0.0, (mean,))

    targets = (CoverageTarget("decode_rows", 16, 0.47), CoverageTarget("prompt_tokens", 512, 0.82))
    seen = [CoverageRow(target, measured(0.64), measured(0.46)) for target in targets]
    path = tmp_path / "router_bias.json"
    path.write_text(json.dumps({"coverage": [asdict(row) for row in seen]}))
    lines = coverage_text(path).splitlines()
    assert lines[2:] == [
        "| 16 decode rows | 47.0 % | 64.0 % | 46.0 % |",
        "| 512 tokens of one prompt | 82.0 % | 64.0 % | 46.0 % |",
    ]


def test_capacity_is_where_attainment_crosses(tmp_path: Path) -> None:
    made = write_sweep(
        tmp_path / "rates", rates=(0.2, 0.5, 1.0, 2.0, 4.0, 8.0), with_limits=True, num_requests=40
    )
    for arm in made.arms:
        text = capacity.capacity_text(capacity.capacity_of(made, arm))
        shares = {cell.point[capacity.RATE]: cell.mean("attainment") or 0.0 for cell in made.of_arm(arm)}
        missed = [rate for rate in sorted(shares) if shares[rate] < 0.9]
        if not missed:
            assert text == "above 8"
        elif missed[0] == 0.2:
            assert text == "below 0.2"
        else:
            below = max(rate for rate in shares if rate < missed[0])
            assert below <= float(text) <= missed[0]
