"""Fits to times that a known machine made: they predict it, and one of another kind is found out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from cost_cases import DENSE, by_arm, recorded_steps
from cost_duels import BENCH, MODEL, REQUEST_S
from sglang_layered.core.pacing import StepLoad
from sglang_layered.errors import BenchError
from sglang_layered_lab.cost.coverage import uniform_coverage
from sglang_layered_lab.cost.fit import (
    Errors,
    FittedModel,
    Observation,
    fit,
    held_out,
    residuals_of,
)
from sglang_layered_lab.cost.roofline import H200, TWO_H100, Roofline
from sglang_layered_lab.cost.ways import Beside, Way, prompt_steps

WAYS = (
    Way("whole"),
    *(Way("mixed", size) for size in (64, 128, 256, 512)),
    *(Way("layered", groups) for groups in (2, 4, 8)),
)

Cost = Callable[[StepLoad], float]


def configurations() -> Iterator[tuple[Way, Beside]]:
    for num_rows in (0, 4, 8):
        for way in WAYS:
            yield way, Beside(num_rows, 400.0)


def observed(time_s: Cost, request_s: float = 0.0, noise: float = 0.0) -> list[Observation]:
    """A sweep's observations: each step, a decode step, and where nothing decodes the whole way."""
    source = np.random.default_rng(1)
    found = []
    for way, beside in configurations():
        steps = prompt_steps(BENCH.num_layers, way, 1024, beside, is_padded=True)
        decode = beside.joined_by(1024).step()
        parts: list[tuple[str, tuple[StepLoad, ...], bool]] = [("decode", (decode,), False)]
        if not beside.decode_rows:
            parts.append(("ttft", steps, True))
        elif way.decodes_wait:
            parts.append(("pause", (*steps, decode), False))
        else:
            parts += [(f"step {index}", (step,), False) for index, step in enumerate(steps)]
        for what, of, is_request in parts:
            value_s = sum(map(time_s, of)) + is_request * request_s
            value_s *= float(np.exp(noise * source.standard_normal()))
            found.append(Observation(way.name, beside.decode_rows, 1024, what, value_s, of, is_request))
    return found


def bench_by_arm(observations: list[Observation]) -> Errors:
    return by_arm(observations, BENCH, is_padded=True)


def test_the_machine_is_predicted() -> None:
    observations = observed(MODEL.step_s, REQUEST_S)
    found = fit(observations, BENCH, is_padded=True)
    assert Errors.of(residuals_of(observations, found)).worst < 1e-3
    assert found.request_s == pytest.approx(REQUEST_S, rel=1e-2)
    assert bench_by_arm(observations).worst < 0.01
    step = StepLoad(5, 5000, (700,), (100,), 3.0)
    assert found.step_s(step) == pytest.approx(MODEL.step_s(step), rel=0.01)


def test_noise_of_five_percent_stays_below_ten() -> None:
    errors = bench_by_arm(observed(MODEL.step_s, REQUEST_S, noise=0.05))
    assert 0.01 < errors.median < 0.1 and errors.worst < 0.3


def test_one_wild_time_does_not_move_the_fit() -> None:
    observations = observed(MODEL.step_s, REQUEST_S)
    place = len(observations) // 2
    wild = observations[place] = replace(observations[place], value_s=20 * observations[place].value_s)
    errors = Errors.of(residuals_of(observations, fit(observations, BENCH, is_padded=True)))
    assert errors.p90 < 0.05 and errors.worst_of.startswith(wild.arm)


def test_a_machine_of_another_kind_is_found_out() -> None:
    """A time that grows with the rows by powers is none of ours."""

    def steep(load: StepLoad) -> float:
        rows = load.decode_rows + load.prompt_rows * load.prompt_layers / BENCH.num_layers
        return 1e-3 * 1.03 ** min(rows, 300)

    errors = bench_by_arm(observed(steep))
    assert errors.median > 0.3 and errors.worst > 2


def test_held_out_means_held_out() -> None:
    """The fit that predicts an arm must not have seen any of its observations."""
    observations = observed(MODEL.step_s, REQUEST_S)
    shown: list[set[str]] = []

    def refit(given: list[Observation]) -> FittedModel:
        shown.append({each.arm for each in given})
        return fit(given, BENCH, is_padded=True)

    found = held_out(observations, "arm", refit)  # type: ignore[arg-type]
    assert [len(arms) for arms in shown] == [len(WAYS) - 1] * len(WAYS)
    assert sorted(found.value_s) == sorted(each.value_s for each in observations)


def test_what_cannot_be_fitted_is_refused() -> None:
    observations = observed(MODEL.step_s)
    with pytest.raises(BenchError, match="record more"):
        fit(observations[:3], BENCH)
    with pytest.raises(BenchError, match="nothing to hold out"):
        held_out(observations, "prompt_tokens", partial(fit, shape=BENCH))
    with pytest.raises(BenchError, match="is no time"):
        Observation("whole", 0, 9, "step 0", 0.0, observations[0].steps)


def test_a_fit_is_carried_by_the_ratio_of_two_rooflines() -> None:
    model = fit(observed(MODEL.step_s), BENCH, is_padded=True)
    carried = replace(model, carried=(H200, TWO_H100))
    step = StepLoad(4, 4000, (512,), (0,), 4.0)
    before, after = (Roofline(BENCH, uniform_coverage, each).step_s(step) for each in (H200, TWO_H100))
    assert carried.step_s(step) == pytest.approx(model.step_s(step) * after / before)


def test_recorded_cpu_steps_are_predicted_by_arms_held_out() -> None:
    """The record's number of steps is SGLang's, and its attention is padded: exact attention does not fit."""
    padded, exact = (by_arm(recorded_steps(each), DENSE, each) for each in (True, False))
    assert padded.median < 0.06 and padded.p90 < 0.12 and padded.worst < 0.3
    assert exact.worst > 0.7
