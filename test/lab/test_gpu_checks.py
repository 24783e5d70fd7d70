"""The checks of a GPU host without a GPU: comparison, cases, memory checker, risks, first minute."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import first_check
from risks import RISKS, advice, find_risks, table
from same_answers import CASES, Agreement, compare
from test_memory_checker import bad_lines

REPO = Path(__file__).resolve().parents[2]


def answered(tokens: list[int], logprobs: list[float]) -> dict[str, Any]:
    entries = [[logprob, token, None] for logprob, token in zip(logprobs, tokens, strict=True)]
    return {"output_ids": tokens, "meta_info": {"output_token_logprobs": entries}}


def test_comparison_stops_at_the_first_other_token() -> None:
    stock = [answered([1, 2, 3, 4], [-0.1, -0.2, -0.3, -0.4]), answered([5, 6], [-1.0, -1.0])]
    layered = [answered([1, 2, 9, 4], [-0.1, -0.25, -9.0, -9.0]), answered([5, 6], [-1.0, -1.01])]
    assert compare(stock, stock) == Agreement(1.0, 1.0, 0.0)
    assert compare(stock, layered) == Agreement(4 / 6, 1.0, 0.05)
    assert compare(stock, [answered([9, 2, 3, 4], [0.0] * 4), layered[1]]).first_tokens == 0.5


def test_cases_cover_backends_and_page_sizes() -> None:
    found = {(case.backend, case.page_size) for case in CASES if case.model != "shapes"}
    assert found == {(name, page) for name in ("triton", "flashinfer", "fa3") for page in (1, 16, 64)}
    assert {case.backend for case in CASES if case.is_exact} == {"triton"}
    for case in CASES:
        stock, layered = case.flags(None), case.flags("fused")
        assert layered[: len(stock)] == stock and "layered" not in stock
        assert len({word for word in layered if word.startswith("--")}) == sum(
            word.startswith("--") for word in layered
        )


def test_memory_checker_must_have_run_and_found_nothing() -> None:
    banner = "========= COMPUTE-SANITIZER\nready\n"
    assert bad_lines(banner) == []
    with pytest.raises(AssertionError, match="did not start"):
        bad_lines("ready")
    assert len(bad_lines(banner + "========= Invalid __global__ write of size 4 bytes\n")) == 1


def test_risks_are_those_of_the_document() -> None:
    assert table() in (REPO / "docs" / "gpu-host.md").read_text()
    assert len({risk.name for risk in RISKS}) == len(RISKS)
    assert "docs/gpu-host.md" in advice("something unheard of")


def test_a_log_says_what_to_try(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.write_text("ModuleNotFoundError: No module named 'nowhere_to_be_found'\n")
    assert [risk.name for risk in find_risks(log.read_text())] == ["R1"]
    command = [sys.executable, str(REPO / "test" / "gpu" / "risks.py"), str(log)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said.startswith("try R1") and "make_bundle --add" in said


def test_first_check_goes_on_after_a_failure_and_names_the_fallback(capsys: pytest.CaptureFixture) -> None:
    def broken() -> str:
        raise ImportError("no such library")

    checks = (("good", lambda: "fine", "R1"), ("bad", broken, "R7"), ("last", lambda: "fine", ""))
    assert first_check.main(checks) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["OK", "FAIL", "OK"]
    assert "R7: `--sampling-backend pytorch`" in lines[1]
    assert {risk for *_, risk in first_check.CHECKS} - {""} <= {risk.name for risk in RISKS}
