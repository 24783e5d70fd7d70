"""The capacity, on curves whose answer is known."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_layered_lab.paper.capacity import Observation, conclude


@given(st.dictionaries(st.integers(1, 40), st.integers(0, 10), min_size=1, max_size=12))
def test_any_observations_are_read_as_a_slow_reading_does(curve: dict[int, int]) -> None:
    found = conclude(Observation(float(rate), tenths / 10) for rate, tenths in curve.items())
    missed = [rate for rate in curve if curve[rate] < 9]
    met = [rate for rate in curve if curve[rate] >= 9 and all(rate < each for each in missed)]
    assert (found.high and found.high.rate_rps) == (min(missed) if missed else None)
    assert found.rate_rps == (max(met) if met else None)
    if met and missed:
        assert found.crossing_rps is not None and max(met) <= found.crossing_rps <= min(missed)


def test_a_hump_is_bracketed_at_the_lowest_miss() -> None:
    told = {1.0: 0.95, 2.0: 0.8, 3.0: 0.93, 4.0: 0.5}
    found = conclude(Observation(*each) for each in told.items())
    assert found.rate_rps == 1.0
    assert found.crossing_rps == pytest.approx(1 + 0.05 / 0.15)
    assert str(found) == "1.33"


@pytest.mark.parametrize(("attainment", "text"), [(1.0, "above 8"), (0.0, "below 0.25")])
def test_an_open_end_is_said(attainment: float, text: str) -> None:
    found = conclude(Observation(rate_rps, attainment) for rate_rps in (1.0, 8.0, 0.25))
    assert (str(found), found.crossing_rps) == (text, None)
