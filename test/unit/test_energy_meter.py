"""The meter, driven by hand with a clock that the test sets; its thread in the last tests."""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import pairwise

import pytest
from energy_replay import Entry, ReplaySource

from sglang_layered.energy import meter as meter_module
from sglang_layered.energy.account import DeviceReading
from sglang_layered.energy.meter import EnergyMeter
from sglang_layered.energy.sources import CounterSample, PowerSample, Sample
from sglang_layered.errors import ConfigError, EnergyError

LONG_S = 60.0  # no test waits that long unless it fails


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Scripted:
    """A source that reads whatever `answer` gives."""

    source = "replay"

    def __init__(self, answer: Callable[[], Sample], device: str = "gpu0") -> None:
        self.device = device
        self.answer = answer
        self.num_reads = 0

    def read(self) -> Sample:
        self.num_reads += 1
        return self.answer()


def metered(clock: Clock, *entries: Entry) -> EnergyMeter:
    return EnergyMeter([ReplaySource("gpu0", entries, clock=clock)], clock=clock)


def run(meter: EnergyMeter, clock: Clock, seconds: float) -> DeviceReading:
    for _ in range(round(seconds * 10)):
        clock.now_s += 0.1
        meter.sample()
    return meter.reading().devices[0]


def lost_and_back(*kind: Entry) -> tuple[DeviceReading, DeviceReading, DeviceReading]:
    """Readings before the loss, in it and after it; the device is away from 10 s to 30 s."""
    clock = Clock()
    meter = metered(clock, *kind)
    meter.sample()
    return run(meter, clock, 9), run(meter, clock, 16), run(meter, clock, 35)


def test_joules_since_start_and_watts() -> None:
    clock = Clock()
    meter = metered(clock, Entry(0, joules=5000), Entry(100, joules=25_000))
    assert meter.reading().devices[0].joules == 0
    meter.sample()
    reading = run(meter, clock, 10)
    assert reading.joules == pytest.approx(2000.0, abs=1e-5)
    assert reading.watts == pytest.approx(200.0)
    assert (reading.device, reading.source, reading.lost) == ("gpu0", "replay", None)


def test_the_idle_window_ends_with_the_first_work() -> None:
    clock = Clock()
    meter = metered(clock, Entry(0, watts=80), Entry(5.05, watts=400))
    meter.sample()
    assert run(meter, clock, 0.5).idle_watts is None, "too short to tell"
    assert run(meter, clock, 4.5).idle_watts == pytest.approx(80.0)
    clock.now_s += 0.01
    meter.note_work()
    reading = run(meter, clock, 5)
    for _ in range(5):
        clock.now_s += 0.1
        meter.note_work()
        meter.sample()
    assert run(meter, clock, 5).idle_watts == reading.idle_watts == pytest.approx(80.0)
    assert reading.watts == pytest.approx(400.0)


def test_work_from_the_first_moment_leaves_no_idle_power() -> None:
    clock = Clock()
    meter = metered(clock, Entry(0, watts=80))
    meter.sample()
    run(meter, clock, 0.9)
    meter.note_work()
    assert run(meter, clock, 10).idle_watts is None


def test_a_lost_counter_comes_back_with_what_it_gained(caplog: pytest.LogCaptureFixture) -> None:
    before, away, back = lost_and_back(
        Entry(0, joules=0), Entry(10, joules=1000), Entry(10.05, error="bus error"), Entry(30, joules=3000)
    )
    assert before.lost is None
    assert away.lost is not None and away.lost.why == "bus error"
    assert away.lost.since_s == pytest.approx(1010.1)
    assert away.watts is None
    assert away.joules == pytest.approx(1000.0, abs=1e-5)
    assert back.lost is None
    assert back.joules == pytest.approx(3000.0, abs=1e-5)
    assert (back.anomalies.num_losses, back.anomalies.num_gaps, back.anomalies.num_uncounted) == (1, 1, 0)
    assert 20 < back.anomalies.gap_s < 26
    assert [record.getMessage() for record in caplog.records] == [
        "Energy of gpu0 (replay) can no longer be read, so its joules stand still: bus error",
        "Energy of gpu0 (replay) is read again",
    ]


def test_a_lost_power_source_invents_nothing() -> None:
    before, away, back = lost_and_back(
        Entry(0, watts=100), Entry(9.95, error="bus error"), Entry(30, watts=100)
    )
    assert away.joules == pytest.approx(990.0)
    seconds_back = 60 - 9.9 - back.anomalies.gap_s
    assert back.joules == pytest.approx(990 + 100 * seconds_back, abs=1e-3)
    assert back.anomalies.num_uncounted == 1
    assert back.watts == pytest.approx(100.0)
    assert before.error_j <= away.error_j <= back.error_j < 0.001


def test_a_read_that_fails_once_is_no_loss() -> None:
    clock = Clock()
    meter = metered(clock, Entry(0, watts=100), Entry(4.95, error="busy"), Entry(5.05, watts=100))
    meter.sample()
    reading = run(meter, clock, 10)
    assert reading.joules == pytest.approx(1000.0)
    assert (reading.anomalies.num_failed_reads, reading.anomalies.num_losses) == (1, 0)
    assert reading.lost is None


def test_a_lost_source_is_asked_less_and_less_often() -> None:
    clock, reads_s = Clock(), []

    def fail() -> Sample:
        reads_s.append(clock.now_s)
        raise EnergyError("gone")

    run(EnergyMeter([Scripted(fail)], clock=clock), clock, 30)
    waits = [round((later - earlier) * 10) for earlier, later in pairwise(reads_s)]
    assert waits[:7] == [1, 2, 4, 8, 16, 32, 51]
    assert set(waits[7:]) == {51}


def test_an_unreasonable_power_is_a_failed_read() -> None:
    clock, power_w = Clock(), [100.0]
    meter = EnergyMeter([Scripted(lambda: PowerSample(power_w[0]))], clock=clock)
    meter.sample()
    run(meter, clock, 2)
    power_w[0] = 4_294_967.0
    reading = run(meter, clock, 10)
    assert reading.joules == pytest.approx(200.0)
    assert reading.lost is not None and reading.watts is None


def test_clock_jumps_leave_a_counter_true() -> None:
    clock, energy_uj = Clock(), [0]
    meter = EnergyMeter([Scripted(lambda: CounterSample(energy_uj[0]))], clock=clock)
    meter.sample()
    for jump_s in (0.1, -500.0, 0.1, 1e6, 0.1):
        clock.now_s += jump_s
        energy_uj[0] += 10_000_000
        meter.sample()
    reading = meter.reading().devices[0]
    assert reading.joules == 50.0
    assert reading.watts == pytest.approx(100.0)
    assert (reading.anomalies.num_clock_backwards, reading.anomalies.num_gaps) == (1, 1)


def test_whatever_a_source_raises_the_others_go_on() -> None:
    clock = Clock()

    def broken() -> Sample:
        raise ZeroDivisionError("a bug in a driver's library")

    sources = [Scripted(broken, "gpu0"), Scripted(lambda: PowerSample(50.0), "gpu1")]
    meter = EnergyMeter(sources, clock=clock)
    run(meter, clock, 10)
    first, second = meter.reading().devices
    assert first.lost is not None and "ZeroDivisionError" in first.lost.why
    assert second.joules == pytest.approx(50 * 9.9)


def test_a_reading_reads_nothing_and_tells_its_age() -> None:
    clock = Clock()
    source = Scripted(lambda: PowerSample(50.0))
    meter = EnergyMeter([source], clock=clock)
    meter.sample()
    clock.now_s += 3
    reading = meter.reading()
    assert source.num_reads == 1
    assert (reading.at_s, reading.age_s) == (1000.0, 3.0)


@pytest.mark.parametrize("period_s", [0.0, -1.0, 0.6, float("nan")])
def test_a_period_that_cannot_work_is_refused(period_s: float) -> None:
    with pytest.raises(ConfigError, match="period_s must be"):
        EnergyMeter([], period_s)


def meter_threads() -> set[threading.Thread]:
    """Those of this process; a server in it may have one."""
    return {thread for thread in threading.enumerate() if thread.name == "energy-meter"}


def test_the_thread_outlives_a_broken_source_and_ends_with_stop() -> None:
    sampled, others = threading.Event(), meter_threads()

    def broken() -> Sample:
        raise RuntimeError("always")

    def good() -> Sample:
        if source.num_reads > 20:
            sampled.set()
        return CounterSample(source.num_reads * 1000)

    source = Scripted(good, "gpu1")
    meter = EnergyMeter([Scripted(broken), source], period_s=0.001)
    meter.start()
    assert sampled.wait(LONG_S)
    meter.stop()
    assert meter_threads() == others
    num_reads, joules = source.num_reads, meter.reading().devices[1].joules
    assert joules == pytest.approx((num_reads - 1) / 1000)
    meter.stop()


def test_a_meter_that_never_started_can_be_stopped() -> None:
    source = Scripted(lambda: CounterSample(0))
    EnergyMeter([source]).stop()
    assert source.num_reads == 0


def test_a_read_that_hangs_does_not_hold_up_stop(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hangs, release, others = threading.Event(), threading.Event(), meter_threads()

    def answer() -> Sample:
        if source.num_reads > 1:
            hangs.set()
            release.wait(LONG_S)
        return CounterSample(0)

    source = Scripted(answer)
    monkeypatch.setattr(meter_module, "STOP_TIMEOUT_S", 0.01)
    meter = EnergyMeter([source], period_s=0.001)
    meter.start()
    assert hangs.wait(LONG_S)
    meter.stop()
    assert "hangs in a read" in caplog.text
    release.set()
    monkeypatch.setattr(meter_module, "STOP_TIMEOUT_S", LONG_S)
    meter.stop()
    assert meter_threads() == others


def test_readers_in_other_threads_see_whole_readings() -> None:
    """Both sources count the same reads, so a reading that was torn would show two different sums."""
    clock, count = Clock(), [0]

    def first() -> Sample:
        count[0] += 1000
        return CounterSample(count[0])

    meter = EnergyMeter(
        [Scripted(first, "gpu0"), Scripted(lambda: CounterSample(count[0]), "gpu1")], clock=clock
    )
    meter.sample()
    torn: list[tuple[float, ...]] = []
    done = threading.Event()

    def read() -> None:
        last = 0.0
        while not done.is_set():
            joules = [device.joules for device in meter.reading().devices]
            if joules[0] != joules[1] or joules[0] < last:
                torn.append((last, *joules))
            last = joules[0]

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    reading = run(meter, clock, 300)
    done.set()
    for reader in readers:
        reader.join()
    assert torn == []
    assert reading.joules == pytest.approx(3.0)
