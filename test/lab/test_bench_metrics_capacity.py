"""The search for the capacity, on curves whose answer is known."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_layered.errors import BenchError
from sglang_layered_lab.bench.capacity import Observation, Search, conclude, drive, find_capacity, next_rate


def cliff(capacity_rps: float, rate_rps: float) -> float:
    """1 up to the capacity, then falling as 1/rate."""
    return min(1.0, 0.9 * capacity_rps / rate_rps) if rate_rps > capacity_rps else 0.95


@given(st.floats(0.05, 400.0), st.floats(0.05, 400.0), st.sampled_from([0.02, 0.05, 0.2]))
def test_a_falling_curve_is_bracketed(capacity_rps: float, first_rps: float, tolerance: float) -> None:
    search = Search((first_rps,), tolerance=tolerance, max_runs=60)
    found = find_capacity(search, lambda rate_rps: cliff(capacity_rps, rate_rps))
    assert found.status == "found" and not found.contradictions
    low, high = found.bracket.low, found.bracket.high
    assert low is not None and high is not None
    assert low.rate_rps <= capacity_rps < high.rate_rps <= low.rate_rps * (1 + tolerance)
    assert found.rate_rps == low.rate_rps <= found.crossing_rps <= high.rate_rps
    rates = [each.rate_rps for each in found.observations]
    assert rates[0] == first_rps and len(rates) == len(set(rates))


@given(st.dictionaries(st.integers(1, 40), st.integers(0, 10), min_size=1, max_size=12))
def test_any_observations_are_read_as_a_slow_reading_does(curve: dict[int, int]) -> None:
    seen = tuple(Observation(float(rate), tenths / 10) for rate, tenths in curve.items())
    found = conclude(Search(tuple(float(rate) for rate in curve)), seen)
    missed = [rate for rate in curve if curve[rate] < 9]
    met = [rate for rate in curve if curve[rate] >= 9 and all(rate < each for each in missed)]
    low, high = found.bracket.low, found.bracket.high
    assert (high and high.rate_rps) == (min(missed) if missed else None)
    assert (low and low.rate_rps) == (max(met) if met else None)
    rises = {(a, b) for a in curve for b in curve if a < b and curve[a] < curve[b]}
    assert {(a.rate_rps, b.rate_rps) for a, b in found.rises} == rises
    against = {(a, b) for a, b in rises if a in missed and curve[b] >= 9}
    assert {(a.rate_rps, b.rate_rps) for a, b in found.contradictions} == against


@given(st.lists(st.floats(0, 1), min_size=12, max_size=12))
def test_noise_never_makes_it_repeat_a_rate_or_run_on(attainments: list[float]) -> None:
    told = iter(attainments)
    found = find_capacity(Search((1.0, 2.0, 3.0), max_runs=12), lambda _: next(told))
    rates = [each.rate_rps for each in found.observations]
    assert len(rates) == len(set(rates)) <= 12


def test_a_hump_is_reported_and_the_lowest_miss_counts() -> None:
    told = {1.0: 0.95, 2.0: 0.8, 3.0: 0.93, 4.0: 0.5}
    search = Search((1.0, 2.0, 3.0, 4.0), tolerance=1.0)
    found = find_capacity(search, told.__getitem__)
    assert (found.status, found.rate_rps) == ("found", 1.0)
    assert found.crossing_rps == pytest.approx(1 + 0.05 / 0.15)
    assert [(low.rate_rps, high.rate_rps) for low, high in found.contradictions] == [(2.0, 3.0)]


def test_a_search_goes_on_when_it_is_told_the_old_answers() -> None:
    search = Search((1.0,))
    whole = find_capacity(search, lambda rate_rps: cliff(7.0, rate_rps))
    driver = drive(search)
    rate_rps = next(driver)
    for each in whole.observations[:4]:
        assert rate_rps == each.rate_rps
        rate_rps = driver.send(each.attainment)
    assert rate_rps == whole.observations[4].rate_rps


@pytest.mark.parametrize(
    ("attainment", "status", "last_rps"),
    [(1.0, "all rates met", 8.0), (0.0, "all rates missed", 0.25)],
)
def test_an_open_end_stops_at_the_limits(attainment: float, status: str, last_rps: float) -> None:
    search = Search((1.0, 2.0), min_rate_rps=0.25, max_rate_rps=8.0)
    found = find_capacity(search, lambda _: attainment)
    assert (found.status, found.crossing_rps) == (status, None)
    assert found.observations[-1].rate_rps == last_rps
    assert found.rate_rps == (8.0 if attainment else None)


def test_too_few_runs_are_said() -> None:
    search = Search((1.0, 8.0), max_runs=3)
    found = find_capacity(search, lambda rate_rps: cliff(3.0, rate_rps))
    assert (found.status, len(found.observations)) == ("runs used up", 3)
    assert next_rate(replace(search, max_runs=9), found.observations) is not None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"first_rates_rps": ()}, "first_rates_rps"),
        ({"first_rates_rps": (1.0, 1.0)}, "none twice"),
        ({"first_rates_rps": (5000.0,)}, "must lie in"),
        ({"min_rate_rps": 0.0}, "min_rate_rps"),
        ({"max_rate_rps": float("inf")}, "max_rate_rps"),
        ({"target": 90.0}, "target"),
        ({"tolerance": 0.0}, "tolerance"),
        ({"factor": 1.0}, "factor"),
        ({"max_runs": 0}, "max_runs"),
    ],
)
def test_a_bad_search_is_refused(fields: dict, message: str) -> None:
    with pytest.raises(BenchError, match=message):
        Search(**{"first_rates_rps": (1.0,), **fields})


def test_an_attainment_in_percent_is_refused() -> None:
    with pytest.raises(BenchError, match="share from 0 to 1"):
        find_capacity(Search((1.0,)), lambda _: 93.0)
