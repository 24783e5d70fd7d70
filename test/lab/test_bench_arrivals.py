"""Arrivals: their distribution, their ramp and what they may depend on."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sglang_layered_lab.bench.arrivals import arrival_times, measuring_window, read_timestamps, time_of
from sglang_layered_lab.bench.spec_errors import SpecError
from sglang_layered_lab.bench.spec_load import LoadSpec, TraceSpec
from sglang_layered_lab.bench.spec_seeds import Stream, generator

POISSON = LoadSpec("poisson", rate_per_s=3.0, num_requests=5000)
ALPHA = 0.01  # of the tests below, whose seeds are fixed


def gaps_of(times: tuple[float, ...]) -> np.ndarray:
    return np.diff(np.array([0.0, *times]))


@pytest.mark.parametrize("seed", range(3))
def test_poisson_gaps_are_exponential_and_independent(seed: int) -> None:
    gaps = gaps_of(arrival_times(POISSON, seed))
    assert stats.kstest(gaps, stats.expon(scale=1 / 3).cdf).pvalue > ALPHA
    assert stats.spearmanr(gaps[1:], gaps[:-1]).pvalue > ALPHA
    assert stats.kstest(gaps, stats.expon(scale=1 / 3.3).cdf).pvalue < ALPHA  # it would see a wrong rate


@pytest.mark.parametrize("burstiness", [0.25, 0.5, 4.0])
def test_gamma_gaps_have_the_shape_and_the_mean_asked_for(burstiness: float) -> None:
    load = replace(POISSON, arrivals="gamma", burstiness=burstiness)
    gaps = gaps_of(arrival_times(load, 1))
    assert stats.kstest(gaps, stats.gamma(burstiness, scale=1 / (3 * burstiness)).cdf).pvalue > ALPHA
    assert stats.kstest(gaps, stats.expon(scale=1 / 3).cdf).pvalue < ALPHA


def test_gamma_with_burstiness_1_is_poisson() -> None:
    assert arrival_times(replace(POISSON, arrivals="gamma", burstiness=1.0), 4) == arrival_times(POISSON, 4)


def test_constant_arrivals_are_a_grid_from_zero() -> None:
    load = LoadSpec("constant", rate_per_s=4.0, duration_s=2.0)
    assert arrival_times(load, 0) == tuple(index / 4 for index in range(8))
    assert arrival_times(replace(load, num_requests=3), 9) == (0.0, 0.25, 0.5)


RATES = st.floats(0.01, 100)


@given(start=st.floats(0, 100), rate=RATES, ramp_s=st.floats(0.01, 1000), past=st.floats(0, 2))
def test_a_point_is_due_when_so_many_are_expected(
    start: float, rate: float, ramp_s: float, past: float
) -> None:
    load = replace(POISSON, ramp_start_per_s=start, rate_per_s=rate, ramp_s=ramp_s)
    time_s = ramp_s * past

    def rate_at(moment_s: float) -> float:
        return start + (rate - start) * min(moment_s / ramp_s, 1)

    oracle = sum(
        (high - low) * (rate_at(low) + rate_at(high)) / 2  # exact: the rate is linear in between
        for low, high in pairwise([0, *([ramp_s] if past > 1 else []), time_s])
    )
    assert time_of(load, oracle) == pytest.approx(time_s, rel=1e-6, abs=1e-9 * ramp_s)


@pytest.mark.parametrize("start", [0.0, 1.0, 12.0])
def test_ramped_poisson_is_exponential_in_expected_requests(start: float) -> None:
    load = replace(POISSON, num_requests=9000, ramp_s=900.0, ramp_start_per_s=start)
    times = np.array(arrival_times(load, 2))
    growth = (3.0 - start) / 900
    early = times[times < 900]
    passed = np.diff(np.array([0.0, *(start * early + growth * early**2 / 2)]))
    assert len(early) > 1000
    assert stats.kstest(passed, stats.expon.cdf).pvalue > ALPHA
    late = np.diff(times[times >= 900])
    assert len(late) > 100
    assert stats.kstest(late, stats.expon(scale=1 / 3).cdf).pvalue > ALPHA


def test_constant_arrivals_on_a_ramp_are_the_exact_roots() -> None:
    load = LoadSpec("constant", rate_per_s=2.0, num_requests=15, ramp_s=10.0)
    times = arrival_times(load, 0)
    assert times[:11] == pytest.approx([(10 * index) ** 0.5 for index in range(11)])  # t^2 / 10 = index
    assert np.diff(times[10:]) == pytest.approx([0.5] * 4)


@given(
    kind=st.sampled_from([("poisson", None), ("gamma", 0.3), ("gamma", 7.0)]),
    seed=st.integers(0, 2**64),
    repetition=st.integers(0, 9),
    number=st.integers(1, 3000),
)
def test_a_seed_gives_the_same_points_whatever_else_is_set(
    kind: tuple[str, float | None], seed: int, repetition: int, number: int
) -> None:
    load = replace(POISSON, arrivals=kind[0], burstiness=kind[1], num_requests=3000)
    times = arrival_times(load, seed, repetition=repetition)
    other = replace(load, num_requests=number, warmup_s=1.0, duration_s=1e6)
    assert arrival_times(other, seed, repetition=repetition) == times[:number]
    faster = replace(load, rate_per_s=6.0)
    assert arrival_times(faster, seed, repetition=repetition) == pytest.approx([each / 2 for each in times])
    assert arrival_times(load, seed, repetition=repetition + 1) != times
    assert arrival_times(load, seed + 1, repetition=repetition) != times
    assert all(low <= high for low, high in pairwise((0.0, *times)))


@given(duration_s=st.floats(0.5, 900), number=st.integers(1, 3000))
def test_the_load_ends_at_its_count_or_its_duration(duration_s: float, number: int) -> None:
    everything = arrival_times(POISSON, 3)
    load = replace(POISSON, duration_s=duration_s, num_requests=number)
    assert arrival_times(load, 3) == tuple(each for each in everything if each < duration_s)[:number]


def test_streams_are_those_of_spawn() -> None:
    children = np.random.SeedSequence(11).spawn(len(Stream))
    for stream in Stream:
        grandchild = children[stream].spawn(3)[2]
        assert generator(11, stream, 2).random() == np.random.default_rng(grandchild).random()


def test_clients_of_a_closed_load_start_over_the_ramp() -> None:
    load = LoadSpec("closed", num_clients=4, num_requests=100, ramp_s=2.0)
    assert arrival_times(load, 0) == (0.0, 0.5, 1.0, 1.5)
    assert arrival_times(replace(load, num_requests=2, ramp_s=0.0), 0) == (0.0, 0.0)


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl"])
def test_a_trace_is_replayed_from_its_first_row(tmp_path: Path, name: str) -> None:
    stamps = [5000, 5000, 5250, 7000]
    rows = ["at,x"] + [f"{each},1" for each in stamps]
    if name.endswith("jsonl"):
        rows = [f'{{"x": null, "at": {each}}}' for each in stamps] + [""]
    (tmp_path / name).write_text("\n".join(rows))
    trace = TraceSpec(name, column="at", unit_s=0.001, speed=2.0)
    read = read_timestamps(trace, tmp_path)
    load = LoadSpec("trace", trace=trace)
    assert arrival_times(load, 0, timestamps=read) == (0.0, 0.0, 0.125, 1.0)
    assert arrival_times(replace(load, duration_s=1.0), 0, timestamps=read) == (0.0, 0.0, 0.125)
    assert arrival_times(replace(load, num_requests=2), 0, timestamps=read) == (0.0, 0.0)
    with pytest.raises(SpecError, match=r"^load\.num_requests: .* has 4 rows; give that many or fewer"):
        arrival_times(replace(load, num_requests=5), 0, timestamps=read)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("at\n2\n1\n", r"row 2 goes back in time; sort"),
        ("att\n2\n", r"row 1 has no column 'at'; did you mean 'att'\?"),
        ("at\n1\nx\n", r"row 2: at = 'x' is no number; correct it"),
        ("at,b\n1,2\n,3\n", r"row 2: at = '' is no number"),
        ("at\n1\nnan\n", r"row 2: at = 'nan' is no number"),
        ("at\n", r"has no rows"),
        ("", r"has no rows"),
    ],
)
def test_a_bad_trace_names_file_row_and_remedy(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(SpecError, match=rf"^load\.trace\.file: t\.csv: {message}"):
        read_timestamps(TraceSpec("t.csv", column="at"), tmp_path)


def test_bad_json_lines_are_named(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"at": 1}\n{"at": \n')
    with pytest.raises(SpecError, match=r"line 2 is no JSON"):
        read_timestamps(TraceSpec("t.jsonl", column="at"), tmp_path)
    (tmp_path / "t.jsonl").write_text("[1, 2]\n")
    with pytest.raises(SpecError, match=r"row 1 has no column 'at'"):
        read_timestamps(TraceSpec("t.jsonl", column="at"), tmp_path)
    with pytest.raises(SpecError, match=r"cannot be read: No such file"):
        read_timestamps(TraceSpec("none.jsonl", column="at"), tmp_path)


def test_the_window_leaves_out_warm_up_and_cool_down() -> None:
    load = LoadSpec("constant", rate_per_s=1.0, duration_s=100.0, warmup_s=10.0, cooldown_s=20.0)
    assert measuring_window(load, arrival_times(load, 0)) == (10.0, 80.0)
    counted = replace(load, num_requests=51)  # ends the load at 50 s, before the duration does
    start_s, end_s = measuring_window(counted, arrival_times(counted, 0))
    assert (start_s, end_s) == (10.0, pytest.approx(30.0))
    replayed = LoadSpec("trace", trace=TraceSpec("t"), duration_s=100.0, cooldown_s=20.0)
    assert measuring_window(replayed, (0.0, 40.0)) == (0.0, pytest.approx(20.0))
    whole = LoadSpec("constant", rate_per_s=1.0, num_requests=5)
    times = arrival_times(whole, 0)
    start_s, end_s = measuring_window(whole, times)
    assert all(start_s <= each < end_s for each in times)


def test_a_window_with_nothing_in_it_is_refused() -> None:
    load = LoadSpec("constant", rate_per_s=1.0, num_requests=30, warmup_s=10.0, cooldown_s=20.0)
    with pytest.raises(
        SpecError, match=r"^load\.num_requests: the load ends after 29 s: no request is due after 10 s"
    ):
        measuring_window(load, arrival_times(load, 0))
    one_more = replace(load, num_requests=31)
    start_s, end_s = measuring_window(one_more, arrival_times(one_more, 0))
    assert start_s <= 10.0 < end_s
    rare = LoadSpec("poisson", rate_per_s=0.001, duration_s=0.5)
    with pytest.raises(SpecError, match=r"^load\.duration_s: no request is due in it"):
        measuring_window(rare, arrival_times(rare, 0))
