"""Intervals: how often they cover a known truth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats

from sglang_layered.errors import BenchError
from sglang_layered_lab.bench.intervals import Interval, paired_ratio, share_interval, t_interval

SEED = 7


def part_that_covers(truth: float, intervals: Sequence[Interval]) -> float:
    return sum(each.low <= truth <= each.high for each in intervals) / len(intervals)


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


def test_pairing_removes_the_drift_that_runs_share() -> None:
    first, second = noisy_pairs(np.random.default_rng(SEED), 10)
    shuffled = paired_ratio(first, second[1:] + second[:1])
    paired = paired_ratio(first, second)
    assert 0.7 < paired.low <= paired.value <= paired.high < 0.9
    assert paired.high - paired.low < 0.5 * (shuffled.high - shuffled.low)


def test_a_bootstrap_of_few_pairs_claims_too_much() -> None:
    """Why the geometric mean with Student's t is what ratios are made by."""
    rng, covered = np.random.default_rng(SEED), 0
    for _ in range(200):
        pairs = [np.array(each) for each in noisy_pairs(rng, 5)]
        found = stats.bootstrap(
            pairs, lambda a, b: a.mean() / b.mean(), paired=True, vectorized=False, n_resamples=100, rng=rng
        )
        covered += found.confidence_interval.low <= 0.8 <= found.confidence_interval.high
    assert covered / 200 < 0.9


def test_a_ratio_by_hand_and_that_of_the_same_runs_twice() -> None:
    assert paired_ratio([1.0, 2.0, 6.0], [2.0, 2.0, 2.0]).value == pytest.approx((0.5 * 1 * 3) ** (1 / 3))
    same = paired_ratio([1.0, 2.0, 4.0], [1.0, 2.0, 4.0])
    assert (same.low, same.value, same.high) == (1.0, 1.0, 1.0)


def test_share_has_a_width_where_all_met_it() -> None:
    full = share_interval(50, 50)
    assert full.value == full.high == 1.0 and full.low == pytest.approx(50 / (50 + 1.959964**2))
    assert share_interval(45, 50).low < 0.9 < share_interval(45, 50).high


def test_what_cannot_be_estimated_is_refused() -> None:
    with pytest.raises(BenchError, match="as many of both"):
        paired_ratio([1.0, 2.0], [1.0, 2.0, 3.0])
    with pytest.raises(BenchError, match="above zero"):
        paired_ratio([1.0, 0.0], [1.0, 2.0])
    with pytest.raises(BenchError, match="no share"):
        share_interval(3, 2)


def test_students_interval_of_three_rounds_covers_the_mean_as_often_as_it_says() -> None:
    draws = np.random.default_rng(5)
    seen = [t_interval(draws.normal(10.0, 2.0, 3)) for _ in range(2000)]
    covered = sum(each.low <= 10.0 <= each.high for each in seen) / len(seen)
    assert 0.935 <= covered <= 0.965
    with pytest.raises(BenchError, match="at least 2"):
        t_interval([1.0])


def test_an_interval_is_cut_where_the_mean_cannot_be_and_covers_it_as_often() -> None:
    wide = t_interval([0.1, 0.9])
    assert wide.low < 0 and wide.high > 1
    cut = t_interval([0.1, 0.9], least=0.0, most=1.0)
    assert (cut.low, cut.value, cut.high) == (0.0, wide.value, 1.0)
    draws = np.random.default_rng(6).exponential(size=(500, 3))
    truths = [
        part_that_covers(1.0, [t_interval(sample, least=least) for sample in draws]) for least in (-9, 0)
    ]
    assert truths[0] == truths[1]
