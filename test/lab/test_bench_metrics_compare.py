"""Arms compared: verdicts on simulated runs, and the best of many points against looking at every pair."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_layered_lab.bench.compare import Point, best_ttft, pareto_set
from sglang_layered_lab.bench.intervals import Interval
from sglang_layered_lab.bench.ratios import Ratio, Versus, versus

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


def compared(runs: dict[str, list[float]], arm: str, better: str = "lower") -> Versus:
    return versus(pd.Series(runs[arm]), pd.Series(runs["base"]), better)


def test_the_same_arm_twice_is_undecided_at_the_stated_rate() -> None:
    verdicts = [compared(arms(4, 0.02, seed), "same").verdict for seed in range(600)]
    assert 0.93 <= verdicts.count("undecided") / len(verdicts) <= 0.97
    assert verdicts.count("better") and verdicts.count("worse")


@pytest.mark.parametrize(("better", "verdict"), [("lower", "better"), ("higher", "worse")])
def test_half_the_value_is_seen_in_the_metrics_direction(better: str, verdict: str) -> None:
    runs = arms(4, 0.02, 0)
    half = compared(runs, "half", better)
    assert (compared(runs, "same", better).verdict, half.verdict) == ("undecided", verdict)
    assert half.ratio.value == pytest.approx(0.5, rel=0.05)
    double = compared({"a": [2.0, 2.1, 2.2], "base": [1.0, 1.1, 1.0]}, "a", better)
    assert double.verdict == {"lower": "worse", "higher": "better"}[better]


def test_precise_means_within_the_limit_both_ways() -> None:
    assert compared(arms(6, 0.01, 0), "half").ratio.is_precise
    assert not compared(arms(6, 0.4, 0), "half").ratio.is_precise
    for low, high, is_precise in ((0.953, 1.049, True), (0.951, 1.0, False), (1.0, 1.051, False)):
        interval = Interval(1.0, low, high, 0.95, "Student t of logs", 3)
        assert Ratio(1.0, interval).is_precise == is_precise
    assert not Ratio(1.0, None).is_precise


@given(clouds)
def test_pareto_set_is_what_no_point_beats(points: list[Point]) -> None:
    def beats(one: Point, other: Point) -> bool:
        as_good = one.ttft_s <= other.ttft_s and one.tbt_s <= other.tbt_s
        return as_good and (one.ttft_s < other.ttft_s or one.tbt_s < other.tbt_s)

    left = {point.arm for point in points if not any(beats(other, point) for other in points)}
    found = pareto_set(points)
    assert {point.arm for point in found} == left and len(found) == len(left)
    assert [point.ttft_s for point in found] == sorted(point.ttft_s for point in found)


@given(clouds, places)
def test_the_best_has_the_lowest_ttft_at_equal_or_better_tbt(rivals: list[Point], place: tuple) -> None:
    limit_s = float(place[1])
    allowed = [point.ttft_s for point in rivals if point.tbt_s <= limit_s]
    best = best_ttft(rivals, limit_s)
    assert (best is None) == (not allowed)
    assert best is None or (best.tbt_s <= limit_s and best.ttft_s == min(allowed))


def test_a_tie_goes_to_the_lower_tbt() -> None:
    assert best_ttft([Point("a", 1.0, 0.3), Point("b", 1.0, 0.2), Point("c", 0.5, 0.9)], 0.3).arm == "b"
