"""What is said of energy: lines for `sglang-layered doctor`, and a reading as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from sglang_layered.energy.find import find_sources
from sglang_layered.energy.meter import DeviceReading, EnergyReading
from sglang_layered.energy.replay import REPLAY_VARIABLE, ReplaySource
from sglang_layered.energy.sources import Found
from sglang_layered.errors import ConfigError

FindingParts = tuple[str, str, str | None]


def energy_findings(found: Found | None = None) -> Iterator[FindingParts]:
    """What, state and remedy of every source, and of what cannot be read; `found` None looks here.

    A machine without energy counters is fine, so its reasons stand in the state, with no remedy. A replay
    file that cannot be used has one.
    """
    if found is None:
        try:
            found = find_sources(None)
        except ConfigError as error:
            yield "energy", str(error), f"correct the file or unset {REPLAY_VARIABLE}"
            return
    for source in found.sources:
        replayed = " (from a file: no measurement)" if source.source == ReplaySource.source else ""
        yield f"energy {source.device}", source.source + replayed, None
    for reason in found.missing:
        yield "energy", f"not measured: {reason}", None


def reading_record(reading: EnergyReading) -> dict[str, Any]:
    """The reading as JSON values; joules and watts rounded to a millionth, times to a millisecond."""
    return {
        "age_s": round(reading.age_s, 3),
        "devices": [_device_record(device, reading) for device in reading.devices],
    }


def _device_record(device: DeviceReading, reading: EnergyReading) -> dict[str, Any]:
    lost = device.lost
    now_s = reading.at_s + reading.age_s
    return {
        "device": device.device,
        "source": device.source,
        "joules": _rounded(device.joules),
        "error_j": _rounded(device.error_j),
        "watts": _rounded(device.watts),
        "idle_watts": _rounded(device.idle_watts),
        "lost": None
        if lost is None
        else {"for_s": round(max(now_s - lost.since_s, 0.0), 3), "why": lost.why},
        "anomalies": asdict(device.anomalies) | {"gap_s": round(device.anomalies.gap_s, 3)},
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
