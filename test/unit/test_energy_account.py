"""Joules and watts from samples: the truth, or within the stated error, or not counted and said so."""

from __future__ import annotations

from fractions import Fraction
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_layered.energy.account import (
    MAX_DEVICE_W,
    MAX_GAP_S,
    NUM_FAILURES_TO_LOSE,
    Account,
    power_increment,
)
from sglang_layered.energy.sources import CounterSample, PowerSample, Sample
from sglang_layered.errors import EnergyError

RAPL_WRAP_UJ = 262_143_328_850
wraps_uj = st.integers(10_000_000_000, RAPL_WRAP_UJ)
parts = st.floats(0, 1)


class Unread:
    device, source = "gpu0", "replay"

    def read(self) -> Sample:
        raise AssertionError("samples are given by hand")


def lose(account: Account, at_s: float) -> None:
    for _ in range(NUM_FAILURES_TO_LOSE):
        account.failed("bus error", at_s)


def account_of(*samples: tuple[Sample, float]) -> Account:
    account = Account(Unread())
    for sample, at_s in samples:
        account.add(sample, at_s, idle=False)
    return account


def counters(wrap_uj: int | None, *states: tuple[int, float]) -> Account:
    return account_of(*((CounterSample(energy_uj, wrap_uj), at_s) for energy_uj, at_s in states))


def powers(*states: tuple[float, float]) -> Account:
    return account_of(*((PowerSample(power_w), at_s) for power_w, at_s in states))


@given(
    wrap_uj=wraps_uj,
    start=parts,
    steps=st.lists(st.tuples(st.floats(-50, 200), parts, st.booleans()), max_size=40),
)
def test_a_counter_sums_to_the_truth_over_wraps_losses_and_clock_jumps(
    wrap_uj: int, start: float, steps: list[tuple[float, float, bool]]
) -> None:
    account, truth_uj, at_s = Account(Unread()), 0, 0.0
    offset_uj = int(start * (wrap_uj - 1))
    account.add(CounterSample(offset_uj, wrap_uj), at_s, idle=False)
    for elapsed_s, part, lost in steps:
        if lost:
            lose(account, at_s)
        at_s += elapsed_s
        drawn_uj = 0.999e6 * part * MAX_DEVICE_W * (max(elapsed_s, 0) + 1)
        truth_uj += int(min(drawn_uj, wrap_uj - 1))
        sample = CounterSample((offset_uj + truth_uj) % wrap_uj, wrap_uj)
        account.add(sample, at_s, idle=False)
    assert account.energy_uj == truth_uj
    assert account.anomalies.num_uncounted == 0


@given(wrap_uj=wraps_uj, start=parts, elapsed_s=st.floats(0, 100_000), part=parts)
def test_wraps_that_cannot_be_seen_are_within_the_error(
    wrap_uj: int, start: float, elapsed_s: float, part: float
) -> None:
    offset_uj = int(start * (wrap_uj - 1))
    truth_uj = int(part * MAX_DEVICE_W * elapsed_s * 1e6)
    account = counters(wrap_uj, (offset_uj, 0.0), ((offset_uj + truth_uj) % wrap_uj, elapsed_s))
    assert account.energy_uj <= truth_uj <= account.energy_uj + account.sampling_error_uj


@given(
    first_w=st.integers(0, 2000),
    slope_w_per_s=st.integers(1, 20_000),
    steps=st.lists(st.tuples(st.integers(1, 2048), st.integers(-16, 16), parts, parts), max_size=30),
)
def test_power_of_bounded_slope_is_within_the_error(
    first_w: int, slope_w_per_s: int, steps: list[tuple[int, int, float, float]]
) -> None:
    """Truth: each interval holds, ramps at no more than the slope, and holds again; samples see its ends."""
    samples, truth_uj = [(PowerSample(float(first_w)), 0.0)], Fraction(0)
    for length, direction, held, early in steps:
        before_w, before_s = Fraction(samples[-1][0].power_w), Fraction(samples[-1][1])
        elapsed_s = Fraction(length, 1024)
        wanted_w = before_w + Fraction(direction, 16) * slope_w_per_s * elapsed_s
        after_w = Fraction(float(min(max(wanted_w, 0), 2000)))
        ramp_s = min(abs(after_w - before_w) / slope_w_per_s, elapsed_s)
        ramp_s += (elapsed_s - ramp_s) * (1 - Fraction(held))
        first_s = (elapsed_s - ramp_s) * Fraction(early)
        truth_uj += before_w * first_s + (before_w + after_w) / 2 * ramp_s
        truth_uj += after_w * (elapsed_s - ramp_s - first_s)
        samples.append((PowerSample(float(after_w)), float(before_s + elapsed_s)))
    account = account_of(*samples)
    assert abs(account.energy_uj - truth_uj * 10**6) <= account.sampling_error_uj
    assert account.anomalies.num_uncounted == 0


@given(
    before_w=st.integers(0, 2000),
    after_w=st.integers(0, 2000),
    length=st.integers(1, 2048),
    steeper=st.integers(0, 5000),
    when=st.fractions(0, 1),
    height=st.fractions(0, 1),
)
def test_an_unseen_peak_adds_no_more_than_documented(
    before_w: int, after_w: int, length: int, steeper: int, when: Fraction, height: Fraction
) -> None:
    elapsed_s = Fraction(length, 1024)
    slope = abs(after_w - before_w) / elapsed_s + steeper
    peak_s = when * elapsed_s
    low = max(before_w - slope * peak_s, after_w - slope * (elapsed_s - peak_s))
    high = min(before_w + slope * peak_s, after_w + slope * (elapsed_s - peak_s))
    peak_w = low + height * (high - low)
    truth_j = (before_w + peak_w) / 2 * peak_s + (peak_w + after_w) / 2 * (elapsed_s - peak_s)
    energy_uj, error_uj = power_increment(PowerSample(before_w), PowerSample(after_w), float(elapsed_s))
    off_j = abs(truth_j - Fraction(energy_uj, 10**6))
    assert off_j <= Fraction(error_uj, 10**6) + slope * elapsed_s**2 / 4


@given(steps=st.lists(st.tuples(st.floats(-1e6, 1e6) | st.floats(-1, 3), st.floats(0, 2000)), min_size=2))
def test_no_clock_makes_power_negative_or_absurd(steps: list[tuple[float, float]]) -> None:
    account, before_uj = Account(Unread()), 0
    for at_s, (_, power_w) in zip(accumulate(step[0] for step in steps), steps, strict=True):
        account.add(PowerSample(power_w), at_s, idle=True)
        assert 0 <= account.energy_uj - before_uj <= MAX_DEVICE_W * MAX_GAP_S * 1e6
        before_uj = account.energy_uj
        assert account.watts is None or 0 <= account.watts <= MAX_DEVICE_W * (1 + 1e-6) + 1
    anomalies = account.anomalies
    assert anomalies.num_uncounted == anomalies.num_gaps + anomalies.num_clock_backwards


def test_the_wrap_of_a_package_counter() -> None:
    account = counters(RAPL_WRAP_UJ, (RAPL_WRAP_UJ - 4_000_000, 0.0), (6_000_000, 0.1))
    assert account.energy_uj == 10_000_000
    assert account.watts == pytest.approx(100.0)
    assert account.sampling_error_uj == 0


def test_a_package_counter_that_was_reset_is_no_wrap() -> None:
    account = counters(RAPL_WRAP_UJ, (100_000_000_000, 0.0), (0, 0.1), (7_000_000, 0.2))
    assert account.energy_uj == 7_000_000
    assert (account.anomalies.num_counter_resets, account.anomalies.num_uncounted) == (1, 1)


def test_a_gpu_counter_after_the_driver_was_reloaded() -> None:
    account = counters(None, (5_000_000, 0.0), (9_000_000, 0.1), (1_000_000, 0.2), (4_000_000, 0.3))
    assert account.energy_uj == 7_000_000
    assert account.anomalies.num_counter_resets == 1


def test_a_counter_that_leaps_forward_is_not_believed() -> None:
    account = counters(None, (0, 0.0), (10**15, 0.1), (10**15 + 5_000_000, 0.2))
    assert account.energy_uj == 5_000_000
    assert (account.anomalies.num_implausible, account.anomalies.num_counter_resets) == (1, 0)


def test_a_gap_of_a_counter_is_energy_and_of_power_is_not() -> None:
    counter = counters(None, (0, 0.0), (600_000_000, 60.0))
    power = powers((10.0, 0.0), (10.0, 60.0))
    assert (counter.energy_uj, power.energy_uj) == (600_000_000, 0)
    for account, num_uncounted in ((counter, 0), (power, 1)):
        anomalies = account.anomalies
        assert (anomalies.num_gaps, anomalies.gap_s, anomalies.num_uncounted) == (1, 60.0, num_uncounted)
        assert account.watts is None, "no power is claimed over a gap"


def test_a_short_loss_is_a_gap_too() -> None:
    counter, power = counters(None, (0, 0.0)), powers((10.0, 0.0))
    lose(counter, 0.1)
    lose(power, 0.1)
    counter.add(CounterSample(15_000_000), 1.5, idle=False)
    power.add(PowerSample(10.0), 1.5, idle=False)
    assert (counter.energy_uj, power.energy_uj) == (15_000_000, 0)
    assert counter.anomalies.gap_s == power.anomalies.gap_s == 1.5


def test_a_backward_clock_costs_a_counter_nothing_and_power_one_interval() -> None:
    counter = counters(None, (0, 100.0), (3_000_000, 5.0), (6_000_000, 5.1))
    power = powers((30.0, 100.0), (30.0, 5.0), (30.0, 5.1))
    assert (counter.energy_uj, power.energy_uj) == (6_000_000, 3_000_000)
    assert counter.anomalies.num_clock_backwards == power.anomalies.num_clock_backwards == 1
    assert (counter.anomalies.num_uncounted, power.anomalies.num_uncounted) == (0, 1)
    assert counter.watts == pytest.approx(30.0)


@pytest.mark.parametrize("power_w", [-1.0, 5000.0, float("nan"), float("inf")])
def test_a_power_that_no_device_draws_is_refused(power_w: float) -> None:
    account = powers((100.0, 0.0), (100.0, 0.5))
    with pytest.raises(EnergyError, match=" W; "):
        account.add(PowerSample(power_w), 0.6, idle=False)
    assert account.energy_uj == 50_000_000
    assert account.anomalies.num_implausible == 1


def test_watts_follow_the_last_second() -> None:
    states = [(100.0, index / 8) for index in range(17)] + [(300.0, 2 + index / 8) for index in range(1, 10)]
    account = powers(*states)
    assert account.watts == pytest.approx(300.0)
    assert powers(*states[:17]).watts == pytest.approx(100.0)
    assert powers(*states[:21]).watts == pytest.approx(100 + 200 * 3.5 / 8)


def test_a_counter_states_how_late_it_may_be() -> None:
    account = counters(None, (0, 0.0), (2_000_000, 0.1), (9_000_000, 0.2), (10_000_000, 0.3))
    assert account.largest_step_uj == 7_000_000


def test_no_answer_at_first_is_a_gap() -> None:
    account = Account(Unread())
    account.failed("busy", 10.0)
    account.failed("busy", 10.1)
    account.add(CounterSample(5), 13.0, idle=True)
    assert (account.anomalies.num_gaps, account.anomalies.gap_s) == (1, 3.0)
    assert account.energy_uj == 0
