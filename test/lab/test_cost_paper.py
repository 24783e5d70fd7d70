"""The paper's figures beside predictions, and the tables of docs/cost-model.md."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from cost_cases import DENSE, by_arm, recorded_steps
from sglang_layered_lab.cost.fit import Errors, residuals_of
from sglang_layered_lab.cost.paper import (
    P99_GAP_S,
    PAPER_BESIDE,
    PROMPT_TOKENS,
    ROOFLINE,
    fitted,
    observations,
    run_times,
)
from sglang_layered_lab.cost.tables import compared
from sglang_layered_lab.cost.ways import Way, predict_prompt

PATH = Path(__file__).resolve().parents[2] / "docs" / "cost-model.md"
DOCUMENT = " ".join(PATH.read_text().split())


def test_expert_bytes_are_the_figures() -> None:
    seen = [predict_prompt(ROOFLINE, Way("chunked", 512 * 2**power), PROMPT_TOKENS) for power in range(5)]
    assert [each.expert_bytes / 1e9 for each in seen] == pytest.approx([764, 407, 214, 111, 57], rel=0.01)


def test_chunk_sizes_are_predicted_by_the_others() -> None:
    for paper_s, roofline_s, held_out_s in run_times().values():
        assert abs(held_out_s / paper_s - 1) < 0.2
        assert roofline_s < 0.35 * paper_s
    assert Errors.of(residuals_of(observations(), fitted())).worst < 0.14


def test_order_of_the_gaps_is_the_papers() -> None:
    predict = partial(predict_prompt, fitted(), prompt_tokens=PROMPT_TOKENS, beside=PAPER_BESIDE)
    gaps = {way: predict(way).worst_step_s for way in P99_GAP_S}
    assert sorted(gaps, key=gaps.__getitem__) == sorted(P99_GAP_S, key=P99_GAP_S.__getitem__)
    assert all(gaps[way] < P99_GAP_S[way] for way in gaps)
    for way, gap_s in gaps.items():
        ttft_s = predict(way).ttft_s
        row = f"| {way.name} | {1e3 * ttft_s:.0f} | {1e3 * gap_s:.1f} | {1e3 * P99_GAP_S[way]:.1f} |"
        assert row in DOCUMENT


def test_table_of_run_times_in_the_document() -> None:
    for chunk, times_s in run_times().items():
        assert f"| {chunk} | {' | '.join(compared(*times_s))} |" in DOCUMENT


def test_table_of_recorded_steps_in_the_document() -> None:
    for name, is_padded in (("padded", True), ("exact", False)):
        errors = by_arm(recorded_steps(is_padded), DENSE, is_padded)
        sizes = [f"{100 * each:.1f} %" for each in (errors.median, errors.p90, errors.worst)]
        assert f"| {name} | {' | '.join(sizes)} |" in DOCUMENT
    assert f"{errors.num} steps" in DOCUMENT
