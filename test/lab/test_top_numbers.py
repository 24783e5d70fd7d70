"""Quantiles, increases and windows of `top` against oracles that count one observation at a time."""

from __future__ import annotations

import math
from bisect import bisect_left

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from sglang_layered_lab.watch.sample import Histogram as Counts
from sglang_layered_lab.watch.sample import Sample, fell, increases, merged, observed, parse, total
from sglang_layered_lab.watch.source import Window

BOUNDS = (0.1, 0.2, 0.5, 1.0, 4.0)
values = st.lists(st.floats(0.001, 6.0), min_size=1, max_size=60)
fractions = st.sampled_from((0.01, 0.25, 0.5, 0.9, 0.99, 1.0))


def counted(observations: list[float], bounds: tuple[float, ...] = BOUNDS) -> Counts:
    """Through the client library and its text: the page that a server would serve."""
    registry = CollectorRegistry()
    histogram = Histogram("sglang:h", "h", registry=registry, buckets=bounds)
    for value in observations:
        histogram.observe(value)
    sample = parse(generate_latest(registry).decode(), 1.0)
    empty = Sample(0.0, {"something": {frozenset(): 0.0}})
    return observed(empty, sample, "h")


def spread_out(observations: list[float], x: float) -> float:
    """Oracle: how many observations lie up to x if those of a bucket are spread evenly over it."""
    mass = 0.0
    for value in observations:
        place = bisect_left(BOUNDS, value)
        low = BOUNDS[place - 1] if place else 0.0
        high = BOUNDS[place] if place < len(BOUNDS) else math.inf
        mass += min(max((x - low) / (high - low), 0.0), 1.0)
    return mass


@given(values, fractions)
def test_quantile_is_the_least_value_that_enough_spread_observations_reach(
    observations: list[float], fraction: float
) -> None:
    found = counted(observations).quantile(fraction)
    assert found is not None
    assume(not math.isinf(found.high))
    low, high = 0.0, BOUNDS[-1]
    for _ in range(60):
        middle = (low + high) / 2
        enough = spread_out(observations, middle) >= fraction * len(observations) - 1e-9
        low, high = (low, middle) if enough else (middle, high)
    assert found.value == pytest.approx(high, rel=1e-6)


@given(values, fractions)
def test_true_quantile_lies_in_the_bucket_that_is_told(observations: list[float], fraction: float) -> None:
    found = counted(observations).quantile(fraction)
    true = sorted(observations)[math.ceil(fraction * len(observations)) - 1]
    assert found is not None
    assert found.low < true <= found.high
    assert found.low <= found.value <= found.high
    assert found.value == found.low or not math.isinf(found.high)


def test_quantile_of_a_hand_made_histogram() -> None:
    # Prometheus documents histogram_quantile on such a ladder: 2 in (0, 1], 6 in (1, 2], 2 above 2.
    counts = Counts((1.0, 2.0, math.inf), (2.0, 6.0, 2.0), 15.0)
    median, top = counts.quantile(0.5), counts.quantile(0.99)
    assert median is not None and (median.value, median.low, median.high) == (1.5, 1.0, 2.0)
    assert top is not None and (top.value, top.high) == (2.0, math.inf)
    assert counts.mean == 1.5


def test_nothing_observed_has_no_quantile_and_no_mean() -> None:
    empty = counted([])
    assert (empty.quantile(0.5), empty.mean, empty.num_observations) == (None, None, 0)


@given(values, values)
def test_merged_histograms_are_that_of_all_observations(one: list[float], other: list[float]) -> None:
    both = merged([counted(one), counted(other)])
    expected = counted(one + other)
    assert (both.bounds, both.counts) == (expected.bounds, expected.counts)
    assert both.total == pytest.approx(expected.total)


@given(values, values)
def test_histograms_of_other_buckets_merge_in_the_buckets_that_both_have(
    one: list[float], other: list[float]
) -> None:
    both = merged([counted(one, (0.1, 0.3, 1.0, 5.0)), counted(other, (0.1, 0.5, 1.0))])
    expected = counted(one + other, (0.1, 1.0))
    assert (both.bounds, both.counts) == (expected.bounds, expected.counts)


class Life:
    """A server that counts, and starts again from 0; `happened` lists (time, events) for the oracle."""

    def __init__(self) -> None:
        self.happened: list[tuple[float, list[float]]] = []
        self.start()

    def start(self) -> None:
        self.registry = CollectorRegistry()
        self.counter = Counter("sglang:events", "e", ["kind"], registry=self.registry).labels("a")
        self.histogram = Histogram("sglang:h", "h", registry=self.registry, buckets=BOUNDS)

    def live(self, time_s: float, events: list[float], restart: bool) -> Sample:
        if restart:
            self.start()
        for value in events:
            self.counter.inc()
            self.histogram.observe(value)
        self.happened.append((time_s, events))
        return parse(generate_latest(self.registry).decode(), time_s)

    def between(self, old: Sample, new: Sample) -> list[float]:
        """Oracle: all events after one sample, up to another."""
        return [
            event for time_s, events in self.happened if old.time_s < time_s <= new.time_s for event in events
        ]


lives = st.lists(
    st.tuples(st.lists(st.floats(0.01, 6.0), max_size=5), st.booleans()), min_size=2, max_size=30
)


@given(lives)
def test_increase_without_a_restart_is_what_happened(story: list[tuple[list[float], bool]]) -> None:
    life = Life()
    samples = [life.live(float(at), events, False) for at, (events, _) in enumerate(story)]
    old, new = samples[len(samples) // 2 - 1], samples[-1]
    events = life.between(old, new)
    seen = observed(old, new, "h")
    assert total(increases(old, new, "events_total")) == len(events)
    assert seen.counts == counted(events).counts
    assert seen.total == pytest.approx(sum(events))
    assert not fell(old, new)


@given(lives)
def test_restarts_never_make_less_than_nothing_or_more_than_happened(
    story: list[tuple[list[float], bool]],
) -> None:
    life, window = Life(), Window(length_s=5.0)
    for at, (events, restart) in enumerate(story):
        window = window.add(life.live(float(at), events, restart))
        if window.pair is None:
            continue
        old, new = window.pair
        happened, seen = life.between(old, new), observed(old, new, "h")
        assert 0 <= total(increases(old, new, "events_total")) <= len(happened)
        assert min(seen.counts) >= 0
        assert seen.num_observations <= len(happened)
        assert old.time_s < new.time_s == at
        assert new.time_s - old.time_s <= 5.0


def test_window_after_a_restart_is_the_pair_around_it_then_starts_there() -> None:
    life, window = Life(), Window(length_s=60.0)
    events, spans = [0.3, 0.3], []
    for at, restart in enumerate((False, False, True, False, False)):
        window = window.add(life.live(float(at), [0.3] if restart else events, restart))
        if window.pair:
            old, new = window.pair
            spans.append(
                (old.time_s, new.time_s, window.restarted, total(increases(old, new, "events_total")))
            )
    assert spans == [(0, 1, False, 2), (1, 2, True, 1), (2, 3, False, 2), (2, 4, False, 4)]


def test_a_gap_longer_than_the_window_keeps_the_sample_before_it() -> None:
    life, window = Life(), Window(length_s=10.0)
    for time_s in (0.0, 1.0, 60.0):
        window = window.add(life.live(time_s, [0.3], False))
    assert window.pair is not None
    assert [sample.time_s for sample in window.pair] == [1.0, 60.0]


def test_a_counter_that_appears_counts_from_nothing_but_not_with_its_server() -> None:
    def page(*lines: str) -> Sample:
        return parse("\n".join(["# TYPE sglang:events counter", *lines, ""]), 0.0)

    old = page('sglang:events_total{worker_addr="a",kind="x"} 5')
    new = page(
        'sglang:events_total{worker_addr="a",kind="x"} 6',
        'sglang:events_total{worker_addr="a",kind="y"} 7',
        'sglang:events_total{worker_addr="b",kind="x"} 1000',
    )
    found = increases(old, new, "events_total")
    assert total(found) == 8
    assert total(found, kind="y") == 7
