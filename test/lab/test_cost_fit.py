"""Fits to times that a known law made: its coefficients come back, and a law of another kind is found out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from cost_cases import by_arm, recorded_steps
from sglang_layered.errors import BenchError
from sglang_layered_lab.cost.costs import COEFFICIENTS, Law, StepCosts
from sglang_layered_lab.cost.coverage import uniform_coverage
from sglang_layered_lab.cost.fit import Errors, Observation, fit, held_out, residuals_of
from sglang_layered_lab.cost.model import StepModel
from sglang_layered_lab.cost.shape import ModelShape
from sglang_layered_lab.cost.step import StepWork
from sglang_layered_lab.cost.ways import Beside, Way, prompt_steps

REPO = Path(__file__).resolve().parents[2]
BENCH = ModelShape(8, 512, 64, 4, 384, 8, 2, 64, 2048)
WAYS = (
    Way("whole"),
    *(Way("mixed", size) for size in (64, 128, 256, 512)),
    *(Way("layered", groups) for groups in (2, 4, 8)),
)
# GB/s, GFLOP/s and overheads as a small CPU has them; at 12 FLOP a byte both sides of `max` count.
TRUE = StepCosts("sum", 1 / 10e9, 1 / 120e9, 1 / 40e9, 60e-6, 30e-6, 15e-6, request=8e-3)

Law_ = Callable[[StepWork], float]


def configurations() -> Iterator[tuple[Way, Beside]]:
    for num_rows in (0, 4, 8):
        for way in WAYS:
            yield way, Beside(num_rows, 400.0)


def observed(time_s: Law_, request_s: float = 0.0, noise: float = 0.0) -> list[Observation]:
    """A sweep's observations: each step, a decode step, and where nothing decodes the whole way."""
    model = StepModel(BENCH, uniform_coverage, TRUE)
    source = np.random.default_rng(1)
    found = []
    for way, beside in configurations():
        works = [model.work(step) for step in prompt_steps(BENCH.num_layers, way, 1024, beside)]
        decode = model.work(beside.joined_by(1024).step())
        parts = [("decode", [decode], 0, 1.0)]
        if not beside.decode_rows:
            parts.append(("ttft", works, 1, 1.0))
        elif way.decodes_wait:
            parts.append(("pause", [*works, decode], 0, 1.0))
        else:
            parts += [(f"step {index}", [work], 0, 1 / len(works)) for index, work in enumerate(works)]
        for what, of, requests, weight in parts:
            value_s = sum(map(time_s, of)) + requests * request_s
            value_s *= float(np.exp(noise * source.standard_normal()))
            name = (way.name, beside.decode_rows, 1024, what)
            found.append(Observation(*name, value_s, tuple(of), requests, weight))
    return found


def of_law(law: Law, step: float = 0.0) -> StepCosts:
    return replace(TRUE, law=law, step=step)


@pytest.mark.parametrize("law", ["sum", "max"])
def test_the_laws_coefficients_come_back(law: Law) -> None:
    true = of_law(law)
    observations = observed(true.time_s, true.request)
    found = fit(observations, law)
    for name in COEFFICIENTS:
        assert getattr(found, name) == pytest.approx(getattr(true, name), rel=1e-3), name
    assert Errors.of(residuals_of(observations, found)).worst < 1e-6
    assert by_arm(observations, law).worst < 1e-3


def test_a_steps_own_time_is_found_in_its_layers() -> None:
    true = of_law("sum", step=2e-3)
    found = fit(observed(true.time_s, true.request), "sum")
    assert found.prompt_layer_call == pytest.approx(true.prompt_layer_call + 2e-3 / BENCH.num_layers)
    assert found.decode_layer_call == pytest.approx(true.decode_layer_call + 2e-3 / BENCH.num_layers)


@pytest.mark.parametrize("law", ["sum", "max"])
def test_noise_of_five_percent_stays_below_ten(law: Law) -> None:
    true = of_law(law)
    observations = observed(true.time_s, true.request, noise=0.05)
    errors = by_arm(observations, law)
    assert 0.01 < errors.median < 0.1 and errors.worst < 0.3


def test_one_wild_time_does_not_move_the_fit() -> None:
    observations = observed(TRUE.time_s, TRUE.request)
    wild = observations[10]
    observations[10] = Observation(
        wild.arm,
        wild.decode_rows,
        wild.prompt_tokens,
        wild.what,
        20 * wild.value_s,
        wild.works,
        wild.num_requests,
    )
    found = fit(observations, "sum")
    errors = Errors.of(residuals_of(observations, found))
    assert errors.p90 < 0.05 and errors.worst_of.startswith(wild.arm)


def test_a_law_of_another_kind_is_found_out() -> None:
    """A time that grows with the rows by powers is none of ours."""

    def steep(work: StepWork) -> float:
        rows = work.link_bytes / (2 * BENCH.hidden_size * 2 * BENCH.num_layers)
        return 1e-3 * 1.03 ** min(rows, 300)

    observations = observed(steep)
    errors = by_arm(observations, "sum")
    assert errors.median > 0.3 and errors.worst > 2
    assert by_arm(observed(TRUE.time_s, TRUE.request), "sum").worst < 1e-3


def test_the_wrong_law_is_told_from_the_right_one() -> None:
    true = of_law("max")
    observations = observed(true.time_s, true.request)
    assert by_arm(observations, "max").median < 1e-6 < 0.005 < by_arm(observations, "sum").median


def test_held_out_means_held_out() -> None:
    """The fit that predicts an arm must not have seen any of its observations."""
    observations = observed(TRUE.time_s, TRUE.request)
    shown: list[set[str]] = []

    def refit(given: list[Observation]) -> StepCosts:
        shown.append({each.arm for each in given})
        return TRUE

    found = held_out(observations, lambda each: each.arm, refit)  # type: ignore[arg-type]
    assert [len(arms) for arms in shown] == [len(WAYS) - 1] * len(WAYS)
    assert {name for arms in shown for name in {way.name for way in WAYS} - arms} == {
        way.name for way in WAYS
    }
    assert len(found) == len(observations)


def test_what_cannot_be_fitted_is_refused() -> None:
    observations = observed(TRUE.time_s)
    with pytest.raises(BenchError, match="record more"):
        fit(observations[:3], "sum")
    with pytest.raises(BenchError, match="nothing to hold out"):
        held_out(observations, lambda each: 0, partial(fit, law="sum"))
    with pytest.raises(BenchError, match="is no time"):
        Observation("whole", 0, 9, "step 0", 0.0, observations[0].works)


def test_recorded_cpu_steps_are_predicted_by_arms_held_out() -> None:
    """The record's number of steps is SGLang's, and its attention is padded: exact attention does not fit."""
    padded, exact = (by_arm(recorded_steps(each), "sum") for each in ("padded", "exact"))
    assert padded.median < 0.05 and padded.p90 < 0.12 and padded.worst < 0.25
    assert exact.worst > 0.7
