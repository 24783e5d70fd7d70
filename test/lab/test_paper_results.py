"""Published reports say what their records say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sglang_layered_lab.bench.sweep_result import MANIFEST, SweepResult
from sglang_layered_lab.bench.tables import to_markdown
from sglang_layered_lab.paper import answers, capacity, claims

REPO = Path(__file__).resolve().parents[2]
REPORTS = sorted((REPO / "results").glob("*/REPORT.md"))


@pytest.fixture(scope="module", params=REPORTS, ids=lambda path: path.parent.name)
def report(request: pytest.FixtureRequest) -> tuple[Path, list[SweepResult]]:
    path: Path = request.param
    return path, [SweepResult.read(each.parent) for each in sorted(path.parent.glob(f"*/{MANIFEST}"))]


def test_there_is_a_report() -> None:
    assert REPORTS


def test_the_tables_are_computed_from_the_records(report: tuple[Path, list[SweepResult]]) -> None:
    path, sweeps = report
    text = path.read_text()
    by_name = {sweep.name: sweep for sweep in sweeps}
    for row in claims.rows(by_name, path.parent.name):
        assert to_markdown((), [(row.where, row.what, row.paper, row.ours, row.why)]).splitlines()[-1] in text
    for line in (*answers.duel_rows(sweeps), *answers.limit_rows(sweeps), *capacity.rows(by_name)):
        assert to_markdown((), [line]).splitlines()[-1] in text


def test_no_interval_reaches_below_zero_where_a_figure_cannot(report: tuple[Path, list[SweepResult]]) -> None:
    """The changes in per cent, whose intervals may, have a sign of their own: the minus of typography."""
    path, sweeps = report
    assert not re.findall(r".*\[-\d.*", path.read_text())
    found = [cell.interval("tbt_p99") for sweep in sweeps for cell in sweep.cells]
    assert min(interval.low for interval in found if interval is not None) == 0.0


def test_every_study_is_whole_and_every_link_leads_somewhere(report: tuple[Path, list[SweepResult]]) -> None:
    path, sweeps = report
    assert all(sweep.num_missing == 0 for sweep in sweeps)
    text = path.read_text()
    targets = re.findall(r"\]\(([^)#]+)\)", text)
    assert len(targets) > len(sweeps)
    assert all((path.parent / target).exists() for target in targets if "://" not in target)


def test_the_same_mode_twice_is_the_same(report: tuple[Path, list[SweepResult]]) -> None:
    _, sweeps = report
    [same] = [sweep for sweep in sweeps if sweep.name == "same"]
    for scalar in ("ttft_mean", "beside_worst"):
        found = claims.ratio(same, scalar, f"{same.arms[0]}-again", same.arms[0])
        assert found is not None and found.interval is not None
        assert found.interval.low <= 1 <= found.interval.high


def test_no_record_holds_a_path_of_a_machine(report: tuple[Path, list[SweepResult]]) -> None:
    _, sweeps = report
    for sweep in sweeps:
        for cell in sweep.cells:
            made = str(cell.record.made_with) + str(cell.record.spec)
            assert not re.search(r"(?<![\w.])/(home|root|tmp|work|opt|usr)/", made)
