"""Metrics of a run against slow recounts from one time a token."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_layered.errors import BenchError
from sglang_layered.metrics.slo import SloLimits
from sglang_layered_lab.bench.metrics import Distribution, Window, measure, requests_of, tokens_of
from sglang_layered_lab.bench.trace import Arrival, RequestTrace

WINDOW = Window(2.0, 7.0)
LIMITS = SloLimits(ttft_s=1.0, tbt_s=0.5)
TICK_S = 0.25  # a binary fraction: sums and differences of times are exact
ticks = st.integers(0, 6)


@st.composite
def traces(draw: st.DrawFn) -> RequestTrace:
    due_s = TICK_S * draw(st.integers(0, 36))
    sent_s = due_s + TICK_S * draw(ticks)
    error = draw(st.sampled_from([None, None, None, "connection reset"]))
    steps = draw(st.lists(st.tuples(ticks, st.integers(1, 4)), min_size=0 if error else 1, max_size=6))
    arrivals, time_s, num_tokens = [], sent_s, 0
    for wait, more in steps:
        time_s, num_tokens = time_s + TICK_S * wait, num_tokens + more
        arrivals.append(Arrival(time_s, num_tokens))
    return RequestTrace("r", due_s, sent_s, draw(st.integers(1, 50)), 99, tuple(arrivals), error)


runs = st.lists(traces(), min_size=1, max_size=8)


def exploded(trace: RequestTrace) -> list[float]:
    """Oracle: one time for every token."""
    times_s: list[float] = []
    for arrival in trace.arrivals:
        while len(times_s) < arrival.num_tokens:
            times_s.append(arrival.time_s)
    return times_s


def gaps_of(trace: RequestTrace) -> list[float]:
    return [later - earlier for earlier, later in pairwise(exploded(trace))]


def due_inside(run: list[RequestTrace]) -> list[RequestTrace]:
    return [trace for trace in run if WINDOW.start_s <= trace.due_s < WINDOW.end_s]


@given(traces(), st.sampled_from(["due", "sent"]))
def test_one_request_equals_its_exploded_times(trace: RequestTrace, since: str) -> None:
    times_s, gaps_s = exploded(trace), gaps_of(trace)
    seen, tokens = requests_of([trace], LIMITS, since).iloc[0], tokens_of([trace])
    assert (tokens.time_s.tolist(), tokens.gap_s.dropna().tolist()) == (times_s, gaps_s)
    if not trace.arrivals:
        assert seen[["first_s", "num_tokens", "ttft_s", "e2e_s", "tpot_s"]].isna().all()
        return
    zero_s = trace.due_s if since == "due" else trace.sent_s
    assert (seen.ttft_s, seen.e2e_s) == (times_s[0] - zero_s, times_s[-1] - zero_s)
    assert seen.worst_gap_s == max(gaps_s, default=0.0)
    assert seen.tpot_s == pytest.approx(sum(gaps_s) / len(gaps_s) if gaps_s else np.nan, nan_ok=True)
    assert seen.stall_s == sum(gap - 0.5 for gap in gaps_s if gap > 0.5)


@settings(max_examples=20)
@given(runs)
def test_requests_measured_together_are_as_each_alone(run: list[RequestTrace]) -> None:
    alone = pd.concat([requests_of([trace], LIMITS) for trace in run], ignore_index=True)
    pd.testing.assert_frame_equal(requests_of(run, LIMITS), alone, check_dtype=False)


@given(runs)
def test_attainment_and_goodput_equal_a_recount(run: list[RequestTrace]) -> None:
    due = due_inside(run)
    if not due:
        with pytest.raises(BenchError, match="widen"):
            measure(run, WINDOW, LIMITS)
        return
    ttft = tbt = both = 0
    for trace in due:
        if trace.error is None:
            first = exploded(trace)[0] - trace.due_s <= 1.0
            every = not any(gap > 0.5 for gap in gaps_of(trace))
            ttft, tbt, both = ttft + first, tbt + every, both + (first and every)
    seen = measure(run, WINDOW, LIMITS)
    failed = sum(trace.error is not None for trace in due)
    assert (seen.num_due, seen.num_failed, seen.num_finished) == (len(due), failed, len(due) - failed)
    assert seen.attainment == {"ttft": ttft / len(due), "tbt": tbt / len(due), "both": both / len(due)}
    assert seen.goodput_rps == both / 5.0


@given(runs)
def test_latencies_are_of_finished_requests_due_in_the_window(run: list[RequestTrace]) -> None:
    due = due_inside(run)
    if not due:
        return
    done = [trace for trace in due if trace.error is None]
    seen = measure(run, WINDOW, LIMITS)
    found = seen.latencies
    assert found.get("ttft") == Distribution.of([exploded(trace)[0] - trace.due_s for trace in done])
    assert found.get("worst_gap") == Distribution.of([max(gaps_of(trace), default=0.0) for trace in done])
    pooled = [gap for trace in done for gap in gaps_of(trace)]
    assert ("tbt" in found) == bool(pooled)
    if pooled:
        assert found["tbt"].count == len(pooled)
        assert found["tbt"].p99 == pytest.approx(np.percentile(pooled, 99))
        assert found["tbt"].mean == pytest.approx(sum(pooled) / len(pooled))


@given(runs)
def test_throughput_equals_a_recount_of_tokens(run: list[RequestTrace]) -> None:
    if not due_inside(run):
        return
    inside = [[2.0 <= time_s < 7.0 for time_s in exploded(trace)] for trace in run]
    prompts = sum(trace.prompt_tokens for trace, seen in zip(run, inside, strict=True) if seen and seen[0])
    ended = sum(
        bool(seen and seen[-1]) and trace.error is None for trace, seen in zip(run, inside, strict=True)
    )
    throughput = measure(run, WINDOW, LIMITS).throughput
    num_tokens, has_tokens = sum(map(sum, inside)), any(inside)
    has_ended = any(trace.error is None for trace in run)
    assert throughput.output_tokens_per_s == (num_tokens / 5.0 if num_tokens or not has_tokens else None)
    both = num_tokens + prompts
    assert throughput.total_tokens_per_s == (both / 5.0 if both or not has_tokens else None)
    assert throughput.requests_per_s == (ended / 5.0 if ended or not has_ended else None)


@given(runs)
def test_the_decode_batch_equals_a_walk_over_the_clock(run: list[RequestTrace]) -> None:
    if not due_inside(run):
        return
    spans = [(times[0], times[-1]) for trace in run if (times := exploded(trace))]
    instants = np.arange(2.0, 7.0, TICK_S) + TICK_S / 2  # nothing changes within a tick
    held = [sum(first <= instant < last for first, last in spans) for instant in instants]
    assert measure(run, WINDOW, LIMITS).decode_batch == pytest.approx(sum(held) / len(held))


def two_streams() -> list[RequestTrace]:
    """Two requests decode together from 3 to 5 s, one alone from 5 to 6 s; a token every second."""
    long = RequestTrace("long", 2.0, 2.5, 10, 4, tuple(Arrival(3.0 + each, 1 + each) for each in range(4)))
    short = RequestTrace("short", 2.5, 2.5, 20, 3, tuple(Arrival(3.0 + each, 1 + each) for each in range(3)))
    return [long, short]


def test_a_run_by_hand() -> None:
    seen = measure(two_streams(), WINDOW, SloLimits(tbt_s=0.75))
    assert seen.latencies["ttft"] == Distribution(2, 0.75, 0.75, 0.95, 0.975, 0.995, 1.0)
    assert seen.latencies["stall"].max == pytest.approx(0.75)
    assert seen.decode_batch == pytest.approx((3 + 2) / 5)
    assert seen.throughput.total_tokens_per_s == pytest.approx((7 + 30) / 5)
    assert seen.attainment == {"tbt": 0.0} and seen.goodput_rps == 0.0
    assert measure(two_streams(), WINDOW, LIMITS, since="sent").latencies["ttft"].max == 0.5


def test_without_limits_there_is_no_attainment() -> None:
    seen = measure(two_streams(), WINDOW, SloLimits())
    assert seen.attainment == {} and seen.goodput_rps is None and "stall" not in seen.latencies


def test_tokens_that_come_together_have_no_gap_between_them() -> None:
    lumps = (Arrival(1.0, 2), Arrival(4.0, 5))
    gaps_s = tokens_of([RequestTrace("r", 0.0, 0.0, 1, 5, lumps)]).gap_s
    assert gaps_s.isna().tolist() == [True, False, False, False, False]
    assert gaps_s.dropna().tolist() == [0, 3, 0, 0]


def test_a_failed_request_met_nothing() -> None:
    trace = RequestTrace("r", 0.0, 0.0, 1, 9, (Arrival(0.1, 1),), error="timeout")
    only_failed = measure([trace], Window(0.0, 1.0), LIMITS)
    assert only_failed.attainment == {"ttft": 0.0, "tbt": 0.0, "both": 0.0}
    assert measure([trace], Window(0.0, 1.0), SloLimits(tbt_s=9.0)).attainment == {"tbt": 0.0}
    assert only_failed.latencies == {} and only_failed.num_failed == 1


@pytest.mark.parametrize(
    ("arrivals", "error", "message"),
    [
        ((), None, "error is not set"),
        ((Arrival(2.0, 1), Arrival(1.0, 2)), None, "back in time"),
        ((Arrival(2.0, 2), Arrival(3.0, 2)), None, "do not grow"),
        ((Arrival(2.0, 0),), "gone", "do not grow"),
        ((Arrival(0.5, 1),), None, "before sent_s"),
    ],
)
def test_impossible_traces_are_refused(
    arrivals: tuple[Arrival, ...], error: str | None, message: str
) -> None:
    with pytest.raises(BenchError, match=message):
        measure([RequestTrace("r7", 1.0, 1.0, 1, 9, arrivals, error)], Window(0.0, 9.0), LIMITS)


@pytest.mark.parametrize("ends", [(1.0, 1.0), (2.0, 1.0), (float("nan"), 1.0), (0.0, float("inf"))])
def test_a_window_has_a_length(ends: tuple[float, float]) -> None:
    with pytest.raises(BenchError, match="end_s"):
        Window(*ends)
