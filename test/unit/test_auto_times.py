"""The step-time model: what it learns, what it forgets, what it makes of odd steps."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auto_cases import LAYERS, NUM_LAYERS, RATES, SIZES, linear
from sglang_layered.auto.prior import imagined_steps
from sglang_layered.auto.step_times import NAMES, StepTimes, amounts, coverage, lines
from sglang_layered.core.layer_shape import LayerShape
from sglang_layered.core.pacing import ModelSizes, StepLoad


def some_load(dice: random.Random) -> StepLoad:
    decodes = dice.randint(1, 32)
    prompt = (dice.randint(16, 6000),) if dice.random() < 0.5 else ()
    layers = dice.randint(1, NUM_LAYERS) if prompt else 0
    return StepLoad(decodes, 300 * decodes, prompt, (0,) * len(prompt), layers)


def taught(num_steps: int, factor: float = 1.0) -> StepTimes:
    times, dice = StepTimes(imagined_steps(SIZES, LAYERS, RATES)), random.Random(7)
    for _ in range(num_steps):
        load = some_load(dice)
        times.observe(amounts(SIZES, load), factor * linear(load))
    return times


def test_a_linear_machine_is_learned() -> None:
    times, dice = taught(200), random.Random(8)
    errors = []
    for _ in range(100):
        load = some_load(dice)
        errors.append(abs(times.predict(amounts(SIZES, load)) / linear(load) - 1))
    assert np.median(errors) < 0.02 and np.quantile(errors, 0.95) < 0.06


def test_a_single_pause_moves_no_prediction() -> None:
    times = taught(100)
    load = StepLoad(8, 2400, (1000,), (0,), 6)
    row = amounts(SIZES, load)
    before = times.predict(row)
    times.observe(row, 1.0)  # instead of 11 ms
    assert times.predict(row) == pytest.approx(before, rel=0.02)


def test_a_slower_machine_is_followed_at_once_and_learned_later() -> None:
    times, dice = taught(200), random.Random(9)
    row = amounts(SIZES, StepLoad(8, 2400))
    for _ in range(4):
        times.observe(row, 2 * linear(StepLoad(8, 2400)))
    assert times.predict(row) == pytest.approx(2 * linear(StepLoad(8, 2400)), rel=0.05)
    for _ in range(600):
        load = some_load(dice)
        times.observe(amounts(SIZES, load), 2 * linear(load))
    assert np.dot(times.coefficients, row) == pytest.approx(2 * linear(StepLoad(8, 2400)), rel=0.1)


def test_a_long_stretch_of_decodes_leaves_what_is_known_of_prompts() -> None:
    times = taught(200)
    row = amounts(SIZES, StepLoad(8, 2400, (2000,), (0,), 12))
    before = times.predict(row)
    for _ in range(3000):
        times.observe(amounts(SIZES, StepLoad(8, 2400)), linear(StepLoad(8, 2400)))
    assert times.predict(row) == pytest.approx(before, rel=0.05)


def test_before_any_step_the_sizes_and_the_device_say_how_long_it_takes() -> None:
    times = StepTimes(imagined_steps(SIZES, LAYERS, RATES))
    short, long = (times.predict(amounts(SIZES, StepLoad(0, 0, (n,), (0,), NUM_LAYERS))) for n in (64, 4096))
    weights = 24 * LAYERS[0].bytes_read(4096) * RATES.byte_s
    assert weights < short < long
    assert long == pytest.approx(weights + 24 * LAYERS[0].flop(4096, 2048) * RATES.flop_s, rel=0.3)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 256), st.integers(0, 9000), st.floats(1e-4, 50)), max_size=60))
def test_any_sequence_of_times_gives_finite_predictions_that_are_not_negative(
    steps: list[tuple[int, int, float]],
) -> None:
    times = StepTimes(imagined_steps(SIZES, LAYERS, RATES))
    for decodes, prompt, took_s in steps:
        load = StepLoad(decodes, 10 * decodes, (prompt,) if prompt else (), (0,) if prompt else (), 3)
        times.observe(amounts(SIZES, load), took_s)
        predicted = times.predict(amounts(SIZES, load))
        assert np.isfinite(predicted) and predicted >= 0


def test_what_was_never_seen_costs_nothing() -> None:
    times = StepTimes()
    for decodes in (4, 8):
        times.observe(amounts(SIZES, StepLoad(decodes, 100 * decodes)), 0.01 * decodes)
    prompt = amounts(SIZES, StepLoad(4, 400, (500,), (0,), NUM_LAYERS))
    assert times.predict(prompt) < 1.0
    assert times.coefficients[NAMES.index("prompt_rows")] == 0


def test_amounts_are_a_line_in_the_layers() -> None:
    load = StepLoad(16, 5000, (700, 300), (0, 128), 5.0)
    at_rest, a_layer = lines(SIZES, load)
    assert amounts(SIZES, load) == pytest.approx(tuple(np.add(at_rest, np.multiply(5, a_layer))))
    found = dict(zip(NAMES, amounts(SIZES, load), strict=True))
    assert found["prompt_rows"] == pytest.approx(1000 * 5 / NUM_LAYERS)
    assert found["prompt_pairs"] == pytest.approx((700 * 350 + 300 * (128 + 150)) * 5 / NUM_LAYERS)
    together = (19 * coverage(SIZES, 16) + 5 * coverage(SIZES, 1016)) / NUM_LAYERS
    assert found["weights"] == pytest.approx(together)


def test_unlike_layers_count_by_their_cost() -> None:
    dense, moe = LayerShape(1_000_000), LayerShape(1_000_000, 8, 2, 4_000_000)
    sizes = ModelSizes.of(4, (dense, moe, moe, moe))
    assert sizes.weight(0, 4) == pytest.approx(4)
    assert sizes.weight(0, 1) < 1 < sizes.weight(1, 2)
    assert sizes.most_layers(0, sizes.weight(0, 2)) == 2
    assert sizes.most_layers(2, 0.1) == 0


@pytest.mark.parametrize("factor", [0.3, 0.5, 3.0, 10.0])
def test_a_prior_that_is_wrong_does_not_outlast_the_first_long_prompts(factor: float) -> None:
    """As a server starts: words of a few tokens, two whole prompts alone, then one beside two streams."""

    def machine(load: StepLoad) -> float:
        pairs = sum(rows * rows for rows in load.prompt_lens)
        return linear(load) + 5e-9 * pairs * load.prompt_layers / NUM_LAYERS

    imagined = [(row, factor * seconds) for row, seconds in imagined_steps(SIZES, LAYERS, RATES)]
    times = StepTimes(imagined)
    loads = [StepLoad(0, 0, (rows,), (0,), NUM_LAYERS) for rows in (9, 1)]
    for _ in range(2):
        loads += [StepLoad(0, 0, (6000,), (0,), NUM_LAYERS), *[StepLoad(1, 6000)] * 7]
    loads += [StepLoad(1, 64, (64,), (0,), NUM_LAYERS), *[StepLoad(2, 128)] * 7]
    for load in loads:
        times.observe(amounts(SIZES, load), machine(load))
    wanted = StepLoad(2, 150, (6000,), (0,), NUM_LAYERS / 4)
    assert times.predict(amounts(SIZES, wanted)) == pytest.approx(machine(wanted), rel=0.15)
