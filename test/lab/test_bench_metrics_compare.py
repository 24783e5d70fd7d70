"""Arms compared: verdicts on simulated runs, and the best of many points against looking at every pair."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_layered.errors import BenchError
from sglang_layered_lab.bench.compare import Point, best_ttft, compare, duels, pareto_set

places = st.tuples(st.integers(1, 6), st.integers(1, 6))
clouds = st.lists(places, max_size=12).map(
    lambda found: [Point(f"arm {index}", float(ttft), float(tbt)) for index, (ttft, tbt) in enumerate(found)]
)


def arms(num_rounds: int, noise: float, seed: int) -> dict[str, list[float]]:
    """Arms of one machine that drifts by round: `same` is the baseline again, `half` has half its value."""
    rng = np.random.default_rng(seed)
    drift = np.exp(rng.normal(scale=0.3, size=num_rounds))
    truth = {"base": 2.0, "same": 2.0, "half": 1.0}
    return {
        arm: list(value * drift * np.exp(rng.normal(scale=noise, size=num_rounds)))
        for arm, value in truth.items()
    }


def test_the_same_arm_twice_is_undecided_at_the_stated_rate() -> None:
    verdicts = [compare(arms(4, 0.02, seed), "base")[0].verdict for seed in range(600)]
    assert 0.93 <= verdicts.count("undecided") / len(verdicts) <= 0.97
    assert verdicts.count("better") and verdicts.count("worse")


@pytest.mark.parametrize(("better", "verdict"), [("lower", "better"), ("higher", "worse")])
def test_half_the_value_is_seen_in_the_metrics_direction(better: str, verdict: str) -> None:
    same, half = compare(arms(4, 0.02, 0), "base", better=better)
    assert (same.arm, same.verdict, half.arm, half.verdict) == ("same", "undecided", "half", verdict)
    assert half.baseline == "base" and half.ratio.value == pytest.approx(0.5, rel=0.05)
    [double] = compare({"a": [2.0, 2.1, 2.2], "b": [1.0, 1.1, 1.0]}, "b", better=better)
    assert double.verdict == {"lower": "worse", "higher": "better"}[better]


def test_precise_means_within_the_limit_both_ways() -> None:
    _, quiet = compare(arms(6, 0.01, 0), "base")
    _, loud = compare(arms(6, 0.4, 0), "base")
    assert quiet.is_precise and not loud.is_precise
    assert not compare(arms(6, 0.01, 0), "base", width_limit=0.001)[1].is_precise
    reach = max(quiet.ratio.high / quiet.ratio.value, quiet.ratio.value / quiet.ratio.low) - 1
    assert compare(arms(6, 0.01, 0), "base", width_limit=reach * 1.001)[1].is_precise
    assert not compare(arms(6, 0.01, 0), "base", width_limit=reach * 0.999)[1].is_precise


def test_the_longer_side_of_an_interval_decides() -> None:
    runs = {"a": [1.0, 1.0, 1.0, 1.0, 1.0, 0.5], "b": [1.0] * 6}
    [skewed] = compare(runs, "b", of="mean", width_limit=0.15)
    assert skewed.ratio.high / skewed.ratio.value < 1.15 < skewed.ratio.value / skewed.ratio.low
    assert not skewed.is_precise


@given(clouds)
def test_pareto_set_is_what_no_point_beats(points: list[Point]) -> None:
    def beats(one: Point, other: Point) -> bool:
        as_good = one.ttft_s <= other.ttft_s and one.tbt_s <= other.tbt_s
        return as_good and (one.ttft_s < other.ttft_s or one.tbt_s < other.tbt_s)

    left = {point.arm for point in points if not any(beats(other, point) for other in points)}
    found = pareto_set(points)
    assert {point.arm for point in found} == left and len(found) == len(left)
    assert [point.ttft_s for point in found] == sorted(point.ttft_s for point in found)


@given(clouds, clouds)
def test_duels_pick_the_lowest_ttft_at_equal_or_better_tbt(
    baselines: list[Point], rivals: list[Point]
) -> None:
    found = duels(baselines, rivals)
    assert [duel.baseline for duel in found] == baselines
    for duel in found:
        allowed = [point.ttft_s for point in rivals if point.tbt_s <= duel.baseline.tbt_s]
        assert (duel.rival is None) == (duel.ttft_ratio is None) == (not allowed)
        if duel.rival is not None:
            assert duel.rival.tbt_s <= duel.baseline.tbt_s
            assert duel.ttft_ratio == min(allowed) / duel.baseline.ttft_s


def test_a_tie_goes_to_the_lower_tbt() -> None:
    assert best_ttft([Point("a", 1.0, 0.3), Point("b", 1.0, 0.2), Point("c", 0.5, 0.9)], 0.3).arm == "b"


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(BenchError, match="baseline"):
        compare({"a": [1.0, 2.0], "b": [1.0, 2.0]}, "c")
    with pytest.raises(BenchError, match="another arm"):
        compare({"a": [1.0, 2.0]}, "a")
    with pytest.raises(BenchError, match="as many of both"):
        compare({"a": [1.0, 2.0], "b": [1.0, 2.0, 3.0]}, "a")
    with pytest.raises(BenchError, match="width_limit"):
        compare({"a": [1.0, 2.0], "b": [1.0, 2.0]}, "a", width_limit=0.0)
