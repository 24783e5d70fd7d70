"""Joules into counters, tokens to divide them by, a step's part: a made-up source, a clock by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from sglang_layered.energy.meter import EnergyMeter
from sglang_layered.energy.sources import PowerSample
from sglang_layered.errors import EnergyError
from sglang_layered.metrics import energy_feed
from sglang_layered.metrics.energy_feed import EnergyFeed


class Written:
    """Stands for Prometheus: sums of what was added, and what was set last."""

    def __init__(self) -> None:
        self.sums: Counter[tuple[str, ...]] = Counter()
        self.values: dict[tuple[str, ...], float] = {}

    def add(self, name: str, amount: float = 1.0, **labels: str) -> None:
        assert amount >= 0
        self.sums[(name, *labels.values())] += amount

    def set(self, name: str, value: float, **labels: str) -> None:
        self.values[(name, *labels.values())] = value

    def observe(self, name: str, value: float, **labels: str) -> None:
        raise AssertionError("no histogram of energy")


class Steady:
    """A device of 100 W, as long as it is there."""

    device, source = "gpu0", "nvml-power"

    def __init__(self) -> None:
        self.is_there = True

    def read(self) -> PowerSample:
        if not self.is_there:
            raise EnergyError("gpu0 is gone")
        return PowerSample(100.0)


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """The clock of meter and feed; sleeping moves it."""
    at = [1000.0]
    monkeypatch.setattr(energy_feed.time, "monotonic", lambda: at[0])
    monkeypatch.setattr(energy_feed.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(energy_feed.threading.Thread, "start", lambda thread: None)  # all by hand
    yield at


def made(now: list[float], device: Steady) -> tuple[EnergyFeed, Written, EnergyMeter]:
    written = Written()
    meter = EnergyMeter([device], clock=lambda: now[0])
    feed = EnergyFeed(written, meter)
    return feed, written, meter


def run(now: list[float], meter: EnergyMeter, seconds: float) -> None:
    for _ in range(round(seconds / 0.1)):
        now[0] += 0.1
        meter.sample()


def test_the_counter_follows_the_meter_and_stands_still_while_the_device_is_gone(now: list[float]) -> None:
    device = Steady()
    feed, written, meter = made(now, device)
    run(now, meter, 3.0)
    feed.export()
    key = ("energy_joules_total", "gpu0", "nvml-power")
    assert written.sums[key] == pytest.approx(300, rel=1e-3)
    device.is_there = False
    run(now, meter, 3.0)
    feed.export()
    feed.export()
    assert written.sums[key] == pytest.approx(300, rel=1e-3)
    [shown] = feed.state()["devices"]
    assert shown["lost"]["why"] == "gpu0 is gone"
    assert shown["watts"] is None
    assert feed.step_j(now[0] - 0.5, 10) == 0.0


def test_a_step_costs_its_watts_times_the_time_since_launch_or_the_results_before(now: list[float]) -> None:
    feed, written, meter = made(now, Steady())
    run(now, meter, 2.0)
    assert feed.step_j(now[0] - 0.2, 8.0) == pytest.approx(20)
    now[0] += 0.05
    assert feed.step_j(now[0] - 0.2, 0.5) == pytest.approx(5)  # launched before the last results
    feed.output_tokens(3)
    assert written.sums["tokens_for_energy_total", "prompt"] == 8.5
    assert written.sums["tokens_for_energy_total", "output"] == 3
    per_token = feed.state()["joules_per_token"]
    joules = feed.state()["devices"][0]["joules"]
    assert per_token == {"prompt": joules / 8, "output": joules / 3, "total": joules / 11}


def test_a_replica_without_the_meter_counts_tokens_and_no_joules() -> None:
    written = Written()
    feed = EnergyFeed(written, None, ("GPU: NVML: not found",))
    assert feed.step_j(0.0, 4.0) == 0.0
    feed.export()
    assert written.sums["tokens_for_energy_total", "prompt"] == 4
    assert not any(name == "energy_joules_total" for name, *_ in written.sums)
    assert feed.state()["missing"] == ["GPU: NVML: not found"]
    assert "devices" not in feed.state()


def test_with_several_replicas_no_joules_a_token_are_claimed(now: list[float]) -> None:
    meter = EnergyMeter([Steady()], clock=lambda: now[0])
    feed = EnergyFeed(Written(), meter, num_replicas=2)
    feed.step_j(now[0], 5.0)
    assert "joules_per_token" not in feed.state()
