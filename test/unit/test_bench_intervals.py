"""Intervals: how often they cover a known truth, and slow recounts of what is resampled."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_layered.bench.intervals import (
    Bootstrap,
    Interval,
    bootstrap,
    mean_interval,
    paired_ratio,
    pooled_quantile_interval,
    quantile_interval,
    share_interval,
    t_interval,
)
from sglang_layered.errors import BenchError

QUICK = Bootstrap(num_resamples=300)
SEED = 7


def part_that_covers(truth: float, intervals: Sequence[Interval]) -> float:
    return sum(each.low <= truth <= each.high for each in intervals) / len(intervals)


def test_mean_of_a_skewed_distribution_is_covered_at_about_the_stated_rate() -> None:
    samples = np.random.default_rng(SEED).exponential(size=(300, 50))
    intervals = [mean_interval(sample, QUICK) for sample in samples]
    assert {each.method for each in intervals} == {"BCa"}
    assert 0.90 <= part_that_covers(1.0, intervals) <= 0.98
    halves = [mean_interval(sample, Bootstrap(0.5, 300)) for sample in samples]
    assert 0.42 <= part_that_covers(1.0, halves) <= 0.58


def test_quantile_is_covered_at_about_the_stated_rate() -> None:
    samples = np.random.default_rng(SEED).exponential(size=(150, 60))
    intervals = [quantile_interval(sample, 0.5, QUICK) for sample in samples]
    assert 0.90 <= part_that_covers(float(np.log(2)), intervals) <= 0.99


def test_gaps_of_one_request_stay_together() -> None:
    """Gaps of a request are alike here; resampling single gaps would claim far too much."""
    rng = np.random.default_rng(SEED)
    runs = [[np.full(40, level) for level in rng.normal(size=40)] for _ in range(100)]
    by_request = [pooled_quantile_interval(groups, 0.5, QUICK) for groups in runs]
    by_gap = [quantile_interval(np.concatenate(groups), 0.5, QUICK) for groups in runs[:20]]
    assert 0.88 <= part_that_covers(0.0, by_request) <= 0.99
    assert part_that_covers(0.0, by_gap) < 0.6


def noisy_pairs(rng: np.random.Generator, count: int) -> tuple[list[float], list[float]]:
    """Runs at a true ratio of 0.8: drift of the machine is shared by a pair, each has noise of its own."""
    drift = np.exp(rng.normal(scale=0.5, size=count))
    first, second = np.exp(rng.normal(scale=0.05, size=(2, count)))
    return list(0.8 * drift * first), list(drift * second)


@pytest.mark.parametrize("count", [3, 5, 10])
def test_paired_ratio_is_covered_at_the_stated_rate_with_few_pairs(count: int) -> None:
    rng = np.random.default_rng(SEED)
    intervals = [paired_ratio(*noisy_pairs(rng, count)) for _ in range(2000)]
    assert 0.94 <= part_that_covers(0.8, intervals) <= 0.96


@pytest.mark.parametrize("of", ["mean", "median"])
def test_bootstrap_of_few_pairs_claims_too_much(of: str) -> None:
    """Why the geometric mean with Student's t is the default."""
    rng = np.random.default_rng(SEED)
    assert part_that_covers(0.8, [paired_ratio(*noisy_pairs(rng, 5), of, QUICK) for _ in range(200)]) < 0.9


def test_pairing_removes_the_drift_that_runs_share() -> None:
    first, second = noisy_pairs(np.random.default_rng(SEED), 10)
    shuffled = paired_ratio(first, second[1:] + second[:1])
    for of in ("geomean", "mean", "median"):
        paired = paired_ratio(first, second, of, QUICK)
        assert 0.7 < paired.low <= paired.value <= paired.high < 0.9
        assert paired.high - paired.low < 0.5 * (shuffled.high - shuffled.low)


def test_ratio_of_means_and_of_medians_by_hand() -> None:
    first, second = [1.0, 2.0, 6.0], [2.0, 2.0, 2.0]
    assert paired_ratio(first, second, "mean", QUICK).value == pytest.approx(1.5)
    assert paired_ratio(first, second, "median", QUICK).value == pytest.approx(1.0)
    assert paired_ratio(first, second).value == pytest.approx((0.5 * 1 * 3) ** (1 / 3))


def test_the_same_runs_twice_have_the_ratio_one() -> None:
    for of in ("geomean", "mean", "median"):
        same = paired_ratio([1.0, 2.0, 4.0], [1.0, 2.0, 4.0], of, QUICK)
        assert (same.low, same.value, same.high) == (1.0, 1.0, 1.0)


@settings(max_examples=50)
@given(
    st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=6), min_size=2, max_size=6),
    st.sampled_from([0.0, 0.25, 0.5, 0.9, 0.99, 1.0]),
)
def test_pooled_quantile_equals_joining_the_drawn_groups(groups: list[list[int]], quantile: float) -> None:
    arrays = [np.array(group, dtype=np.float64) for group in groups]

    def slowly(chosen: np.ndarray) -> float:
        return float(np.quantile([value for index in chosen for value in groups[index]], quantile))

    quick = Bootstrap(num_resamples=100)
    got, expected = pooled_quantile_interval(arrays, quantile, quick), bootstrap(len(groups), slowly, quick)
    assert got.value == pytest.approx(expected.value)
    assert (got.low, got.high) == pytest.approx((expected.low, expected.high))


def test_percentiles_where_bca_is_not_defined() -> None:
    flat = mean_interval([2.0, 2.0, 2.0], QUICK)
    assert (flat.low, flat.value, flat.high, flat.method) == (2.0, 2.0, 2.0, "percentile")


def test_a_seed_gives_one_interval() -> None:
    values = np.random.default_rng(SEED).exponential(size=30)
    assert mean_interval(values, QUICK) == mean_interval(values, QUICK)
    other = Bootstrap(num_resamples=300, seed=1)
    assert mean_interval(values, other) != mean_interval(values, QUICK)


def test_share_has_a_width_where_all_met_it() -> None:
    full = share_interval(50, 50)
    assert full.value == full.high == 1.0 and full.low == pytest.approx(50 / (50 + 1.959964**2))
    assert share_interval(45, 50).low < 0.9 < share_interval(45, 50).high


def test_what_cannot_be_estimated_is_refused() -> None:
    with pytest.raises(BenchError, match="at least 2"):
        mean_interval([1.0])
    with pytest.raises(BenchError, match="as many of both"):
        paired_ratio([1.0, 2.0], [1.0, 2.0, 3.0])
    with pytest.raises(BenchError, match="above zero"):
        paired_ratio([1.0, 0.0], [1.0, 2.0])
    with pytest.raises(BenchError, match="empty"):
        pooled_quantile_interval([np.zeros(2), np.zeros(0)], 0.5)
    with pytest.raises(BenchError, match="no share"):
        share_interval(3, 2)
    with pytest.raises(BenchError, match="confidence"):
        Bootstrap(confidence=95)
    with pytest.raises(BenchError, match="num_resamples"):
        Bootstrap(num_resamples=1)


def test_students_interval_of_three_rounds_covers_the_mean_as_often_as_it_says() -> None:
    draws = np.random.default_rng(5)
    seen = [t_interval(draws.normal(10.0, 2.0, 3)) for _ in range(2000)]
    covered = sum(each.low <= 10.0 <= each.high for each in seen) / len(seen)
    assert 0.935 <= covered <= 0.965
    with pytest.raises(BenchError, match="at least 2"):
        t_interval([1.0])
