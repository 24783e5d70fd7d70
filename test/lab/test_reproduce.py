"""`reproduce --fast` on real servers: each study runs, the report says what was measured, once is enough."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from servers import forked
from sglang_layered_lab.bench.sweep_result import SweepResult
from sglang_layered_lab.cli.reproduce import reproduce
from sglang_layered_lab.paper.studies import read_studies

pytestmark = pytest.mark.server

ROOT = Path(__file__).resolve().parents[2]
SPECS = ROOT / "scripts" / "paper" / "cpu"


def run(out: Path) -> str:
    arguments = ["--profile", "cpu", "--fast", "--out", str(out), "--specs", str(SPECS)]
    result = CliRunner().invoke(reproduce, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_the_fast_reproduction_measures_every_study_and_reports_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)  # models are made in out/, and shared with other runs
    for name, value in forked().items():
        monkeypatch.setenv(name, value)
    out = tmp_path / "cpu-fast"
    run(out)
    text = (out / "REPORT.md").read_text()
    studies = read_studies(SPECS, fast=True)
    for study in studies:
        found = SweepResult.read(out / study.name)
        assert found.num_missing == 0 and len(found.cells) == len(study.spec.cells)
        assert found.title in text
        for cell in found.cells:
            assert len(cell.record.repetitions) == study.spec.settings.rounds
            for repetition in cell.record.repetitions:
                assert all(trace.error is None for trace in repetition.traces)
                assert sum(repetition.usage["expert_bytes"].values()) > 0
                assert repetition.usage["doubts"] == []
    assert "not measured" in text and "Fig. 2" in text  # some studies are left out, and it says so
    targets = re.findall(r"\]\(([^)#]+)\)", text)
    assert len(targets) > len(studies) and all((out / target).exists() for target in targets)
    beside = {cell.arm: cell for cell in SweepResult.read(out / "beside").cells}
    coverage = {arm: cell.mean("coverage_hybrid") for arm, cell in beside.items()}
    assert coverage["whole"] is None  # SGLang's default never joins prompts and decodes
    assert 0 < (coverage["layered-8"] or 0) <= 1 and 0 < (coverage["mixed-64"] or 0) <= 1
    again = run(out)
    assert not re.search(r"\d+/\d+: ", again)
