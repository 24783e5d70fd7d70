"""What a policy wishes is bounded: nobody is passed, held or left sitting for ever; nonsense is refused."""

from __future__ import annotations

from math import inf, nan
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_layered.core import bounds
from sglang_layered.core.questions import Decode, Running, SloClass, Waiting
from sglang_layered.errors import ConfigError

FORMS = st.sampled_from([list, tuple, np.array])  # of an answer


@given(st.data(), st.lists(st.integers(0, 2 * bounds.MOST_PASSED), max_size=12))
def test_who_was_passed_too_often_comes_first_and_nobody_twice(data: Any, passed: list[int]) -> None:
    waiting = [Waiting(tokens=10, passed=times) for times in passed]
    answer = data.draw(st.lists(st.sampled_from(range(len(waiting))), unique=True)) if waiting else []
    admitted = bounds.admitted_in(data.draw(FORMS)(answer), waiting)
    overdue = [index for index, times in enumerate(passed) if times >= bounds.MOST_PASSED]
    assert admitted[: len(overdue)] == overdue
    assert admitted[len(overdue) :] == [index for index in answer if index not in overdue]


@given(st.floats(0, 1e6), st.floats(0, 1e6))
def test_nobody_is_held_for_longer_than_the_cap(answer_s: float, held_s: float) -> None:
    more_s = bounds.held_for(answer_s, held_s)
    assert 0 <= more_s <= answer_s and held_s + more_s <= max(held_s, bounds.MOST_HELD_S) * (1 + 1e-9)


@given(st.data(), st.lists(st.integers(1, 200), max_size=12), st.integers(0, 500))
def test_who_overtakes_fits_into_a_cohort(data: Any, tokens: list[int], most: int) -> None:
    waiting = [Waiting(each) for each in tokens]
    answer = data.draw(st.lists(st.sampled_from(range(len(waiting))), unique=True)) if waiting else []
    chosen = bounds.overtaking(data.draw(FORMS)(answer), waiting, most)
    assert chosen == answer[: len(chosen)] and sum(tokens[index] for index in chosen) <= most
    assert chosen == answer or sum(tokens[index] for index in answer[: len(chosen) + 1]) > most
    assert bounds.overtaking(None, waiting, most) == []


@given(st.data(), st.lists(st.integers(0, 2 * bounds.MOST_SAT_OUT), min_size=1, max_size=12))
def test_nobody_sits_out_for_ever(data: Any, sat_out: list[int]) -> None:
    running = Running.of([Decode(100, sat_out=steps) for steps in sat_out])
    answer = data.draw(st.none() | st.lists(st.sampled_from(range(len(sat_out))), unique=True))
    before = running.sat_out.copy()
    decodes = bounds.decoding(answer, running)
    wanted = set(answer or range(len(sat_out)))
    wanted |= {index for index, steps in enumerate(sat_out) if steps >= bounds.MOST_SAT_OUT}
    assert decodes == (None if len(wanted) == len(sat_out) else sorted(wanted))
    assert np.array_equal(running.sat_out, before)


@pytest.mark.parametrize("answer", [[0, 0], [2], [-1]])
def test_answers_without_a_meaning_are_refused(answer: list[int]) -> None:
    waiting = [Waiting(1), Waiting(2)]
    with pytest.raises(ValueError, match="order gave"):
        bounds.admitted_in(answer, waiting)
    with pytest.raises(ValueError, match="preempt gave"):
        bounds.overtaking(answer, waiting, 100)
    if len(set(answer)) == len(answer):  # who decodes has no order, so twice is once
        with pytest.raises(ValueError, match="decode_rows gave"):
            bounds.decoding(answer, Running.of([Decode(1), Decode(2)]))


@pytest.mark.parametrize("answer_s", [nan, inf, -1.0])
def test_a_time_without_a_meaning_is_refused(answer_s: float) -> None:
    with pytest.raises(ValueError, match="hold gave"):
        bounds.held_for(answer_s, 0.0)


def test_a_request_names_limits_of_its_own() -> None:
    server = SloClass(2.0, 0.05)
    assert server.of(None) == server.of({}) == server.of({"layered_report": True}) == server
    assert server.of({"slo_ttft_ms": 300}) == SloClass(0.3, 0.05)
    assert server.of({"slo_tbt_ms": None, "slo_ttft_ms": 10.5}) == SloClass(0.0105, inf)


@pytest.mark.parametrize("value", [0, -1, nan, inf, "300", True, [300]])
def test_limits_of_a_request_are_times(value: object) -> None:
    with pytest.raises(ConfigError, match=r"custom_params slo_tbt_ms .* above 0, or null"):
        SloClass().of({"slo_tbt_ms": value})
