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
from sglang_layered.errors import LabError
from sglang_layered_lab.cli.quickstart import quickstart
from sglang_layered_lab.quickstart.figures import COLUMNS, measure
from sglang_layered_lab.quickstart.replay import BEFORE_S, read_played, write_replay

REPO = Path(__file__).resolve().parents[2]
QUICKSTARTS = REPO / "results/quickstart"
RECORDS = sorted(path for path in QUICKSTARTS.rglob("*.json") if path.name != "sweep.json")
RECORD, PAGE = QUICKSTARTS / "2026-11-21-2cores-overlap.json", REPO / "docs/replay.html"
OF_THE_README = QUICKSTARTS / "2026-11-30-2cores"


def data_of(page: str) -> list[dict[str, Any]]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    modes: list[dict[str, Any]] = json.loads(found[1])
    return modes


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_figures_of_older_files_are_what_was_written_then(path: Path) -> None:
    document = json.loads(path.read_text())
    for played, run in zip(read_played(path), document["runs"], strict=True):
        for name in COLUMNS:
            values = [measure(each)[name] for each in played.repetitions]
            assert median(values) == pytest.approx(run["metrics"][name]["median"], abs=0.01)


def test_the_page_has_the_times_of_the_median_repetition(tmp_path: Path) -> None:
    page = write_replay(RECORD, tmp_path / "deep" / "page.html").read_text()
    runs = json.loads(RECORD.read_text())["runs"]
    for mode, run in zip(data_of(page), runs, strict=True):
        ttfts_s = [each["long"][0][0] for each in run["repetitions"]]
        assert mode["ttft"] == pytest.approx(median(ttfts_s), abs=0.001)
        repetition = run["repetitions"][mode["repetition"] - 1]
        for lane, written in zip(mode["lanes"], repetition["running"], strict=True):
            assert len(lane) == sum(time_s > -BEFORE_S for time_s, _ in written)
            assert lane[-1][0] == pytest.approx(written[-1][0], abs=0.001)
            assert [count for _, count in lane] == list(range(1, len(lane) + 1))
    assert "computes every query" in page  # of records with SGLang's own attention on a CPU


def test_the_page_of_the_readme_is_that_of_its_record(tmp_path: Path) -> None:
    """Made by `sglang-layered quickstart --record OF_THE_README --page docs/replay.html`."""
    assert PAGE.read_text() == write_replay(OF_THE_README, tmp_path / "page.html").read_text()
    assert "docs/replay.html" in (REPO / "README.md").read_text()


def test_what_is_no_record_of_a_quickstart_is_refused(tmp_path: Path) -> None:
    write_sweep(tmp_path / "sweep", arms={"default": ARMS["default"]}, num_requests=2, rounds=1)
    with pytest.raises(LabError, match="not one of a quickstart"):
        write_replay(tmp_path / "sweep", tmp_path / "page.html")
    (tmp_path / "other.json").write_text('{"runs": []}')
    with pytest.raises(LabError, match="no record of a quickstart"):
        write_replay(tmp_path / "other.json", tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_the_command_writes_a_page_of_a_record_and_serves_nothing(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    done = CliRunner().invoke(quickstart, ["--record", str(RECORD), "--page", str(page)])
    assert done.exit_code == 0 and done.output == f"wrote {page}\n" and page.exists()
    refused = CliRunner().invoke(quickstart, ["--record", str(RECORD)])
    assert refused.exit_code == 2 and "--page FILE" in refused.output
