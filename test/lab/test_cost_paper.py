"""The paper's figures beside predictions, and the tables of docs/cost-model.md."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from cost_cases import by_arm, recorded_steps
from sglang_layered_lab.cost.costs import Law
from sglang_layered_lab.cost.devices import DEVICES
from sglang_layered_lab.cost.fit import Errors, fit, held_out, residuals_of
from sglang_layered_lab.cost.paper import (
    EXPERTS_S,
    P99_GAP_S,
    PROMPT_TOKENS,
    RATES,
    REST_S,
    compare_run_times,
    fitted,
    observations,
)
from sglang_layered_lab.cost.predict import predict_prompt
from sglang_layered_lab.cost.ways import Beside

PATH = Path(__file__).resolve().parents[2] / "docs" / "cost-model.md"
DOCUMENT = " ".join(PATH.read_text().split())
RUN_TIME_MS = {512: 559, 1024: 371, 2048: 264, 4096: 233, 8192: 209}


def test_run_times_are_the_figures() -> None:
    assert {chunk: round(1e3 * (EXPERTS_S[chunk] + REST_S[chunk])) for chunk in EXPERTS_S} == RUN_TIME_MS
    gigabytes = [sum(work.expert_bytes for work in each.works) / 1e9 for each in observations()[::2]]
    assert gigabytes == pytest.approx([764, 407, 214, 111, 57], rel=0.01)


@pytest.mark.parametrize(("law", "worst"), [("sum", 0.09), ("max", 0.11)])
def test_chunk_sizes_are_predicted_by_the_others(law: Law, worst: float) -> None:
    for row in compare_run_times(law):
        assert abs(row.held_out_s / row.paper_s - 1) < worst
        assert row.roofline_s < 0.35 * row.paper_s


def test_rates_of_the_fit_are_below_the_peaks() -> None:
    costs = fitted().costs
    peak = DEVICES["2xh100"].costs()
    assert costs.byte > peak.byte and costs.flop > peak.flop
    assert costs.attention_flop == costs.flop
    assert costs.decode_layer_call == costs.step == costs.request == 0.0
    assert Errors.of(residuals_of(observations(), costs)).worst < 0.14


def test_order_of_the_gaps_is_the_papers() -> None:
    predict = partial(predict_prompt, fitted(), prompt_tokens=PROMPT_TOKENS, beside=Beside(16, 2048))
    gaps = {way: predict(way).worst_step_s for way in P99_GAP_S}
    assert sorted(gaps, key=gaps.__getitem__) == sorted(P99_GAP_S, key=P99_GAP_S.__getitem__)
    assert all(gaps[way] < P99_GAP_S[way] for way in gaps)
    for way, gap_s in gaps.items():
        ttft_s = predict(way).ttft_s
        row = f"| {way.name} | {1e3 * ttft_s:.0f} | {1e3 * gap_s:.1f} | {1e3 * P99_GAP_S[way]:.1f} |"
        assert row in DOCUMENT


def test_table_of_run_times_in_the_document() -> None:
    for row in compare_run_times():
        cells = [str(row.chunk_tokens), f"{1e3 * row.paper_s:.0f}"]
        for predicted_s in (row.roofline_s, row.held_out_s):
            cells += [f"{1e3 * predicted_s:.0f}", f"{100 * (predicted_s / row.paper_s - 1):+.1f} %"]
        assert f"| {' | '.join(cells)} |" in DOCUMENT
    parts = Errors.of(held_out(observations(), lambda each: each.arm, partial(fit, law="sum", groups=RATES)))
    assert f"median {100 * parts.median:.1f} %, worst {100 * parts.worst:.1f} %" in DOCUMENT
    others = [100 * (row.held_out_s / row.paper_s - 1) for row in compare_run_times("max")]
    assert f"{min(others):+.1f} to {max(others):+.1f} %" in DOCUMENT
    costs = fitted().costs
    rates = f"{1e-12 / costs.byte:.1f} TB/s, {1e-12 / costs.flop:.0f} TFLOP/s"
    assert f"{rates}, {1e3 * costs.prompt_layer_call:.2f} ms a layer call" in DOCUMENT


def test_table_of_recorded_steps_in_the_document() -> None:
    for attention in ("padded", "exact"):
        errors = by_arm(recorded_steps(attention), "sum")
        sizes = [f"{100 * each:.1f} %" for each in (errors.median, errors.p90, errors.worst)]
        assert f"| {attention} | {' | '.join(sizes)} |" in DOCUMENT
    assert f"{errors.num} steps" in DOCUMENT
