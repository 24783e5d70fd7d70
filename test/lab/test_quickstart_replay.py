"""The replay's data against the record's own, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from click.testing import CliRunner

from bench_sweeps import ARMS, write_sweep
from sglang_layered.errors import BenchError, LabError
from sglang_layered_lab.bench.sweep_result import SweepResult
from sglang_layered_lab.cli.quickstart import quickstart
from sglang_layered_lab.quickstart.replay import BEFORE_S, write_replay

REPO = Path(__file__).resolve().parents[2]
RECORD, PAGE = REPO / "results/quickstart/2026-11-30-2cores", REPO / "docs/replay.html"


def data_of(page: str) -> list[dict[str, Any]]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    modes: list[dict[str, Any]] = json.loads(found[1])
    return modes


def test_the_page_has_the_times_of_the_median_repetition(tmp_path: Path) -> None:
    page = write_replay(RECORD, tmp_path / "deep" / "page.html").read_text()
    for mode, cell in zip(data_of(page), SweepResult.read(RECORD).cells, strict=True):
        repetitions = cell.record.repetitions
        ttfts_s = [each.traces[0].arrivals[0].time_s - each.traces[0].sent_s for each in repetitions]
        assert mode["ttft"] == pytest.approx(median(ttfts_s), abs=0.001)
        shown = repetitions[mode["repetition"] - 1]
        sent_s = shown.traces[0].sent_s
        for lane, stream in zip(mode["lanes"], shown.background, strict=True):
            times_s = [arrival.time_s - sent_s for arrival in stream.arrivals]
            assert len(lane) == sum(time_s > -BEFORE_S for time_s in times_s)
            assert lane[-1][0] == pytest.approx(times_s[-1], abs=0.001)
            assert [count for _, count in lane] == list(range(1, len(lane) + 1))


def test_the_page_of_the_readme_is_that_of_its_record(tmp_path: Path) -> None:
    """Made by `sglang-layered quickstart --record RECORD --page docs/replay.html`."""
    assert PAGE.read_text() == write_replay(RECORD, tmp_path / "page.html").read_text()
    assert "docs/replay.html" in (REPO / "README.md").read_text()


def test_what_is_no_record_of_a_quickstart_is_refused(tmp_path: Path) -> None:
    write_sweep(tmp_path / "sweep", arms={"default": ARMS["default"]}, num_requests=2, rounds=1)
    with pytest.raises(LabError, match="not one of a quickstart"):
        write_replay(tmp_path / "sweep", tmp_path / "page.html")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BenchError, match="no sweep"):
        write_replay(tmp_path / "empty", tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_the_command_writes_a_page_of_a_record_and_serves_nothing(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    done = CliRunner().invoke(quickstart, ["--record", str(RECORD), "--page", str(page)])
    assert done.exit_code == 0 and done.output == f"wrote {page}\n" and page.exists()
    refused = CliRunner().invoke(quickstart, ["--record", str(RECORD)])
    assert refused.exit_code == 2 and "--page FILE" in refused.output
