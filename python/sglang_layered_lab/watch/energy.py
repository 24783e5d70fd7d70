"""Power of each device and energy per token, from two samples. It knows no terminal and no device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from sglang_layered_lab.watch.sample import Labels, Sample, Series, increases, server_of, total


class Device(NamedTuple):
    """One device of one server ("" without a router), and where its energy is read."""

    server: str
    name: str
    source: str


@dataclass(frozen=True, slots=True)
class DeviceLine:
    """Energy over the window of one device, or of all together (`device` None); None where not known.

    Each kind of token is divided the whole energy of the device, so J/token of two kinds do not add up.
    """

    device: Device | None
    watts: float | None
    idle_watts: float | None
    j_per_prompt_token: float | None
    j_per_output_token: float | None
    j_per_token: float | None


def device_lines(old: Sample, new: Sample, window_s: float) -> tuple[DeviceLine, ...]:
    """One line per device, then one for all if there are several; none where the server reads no energy."""
    joules = _by_device(increases(old, new, "energy_joules_total"))
    idle = _by_device(new.of("energy_idle_watts"))
    tokens = increases(old, new, "tokens_for_energy_total")
    devices = sorted({*joules, *idle})
    lines = [
        _line(device, joules.get(device), idle.get(device), _of(tokens, device.server), window_s)
        for device in devices
    ]
    if len(lines) > 1:
        all_joules = sum(joules.values()) if len(joules) == len(devices) else None
        all_idle = sum(idle.values()) if len(idle) == len(devices) else None
        lines.append(_line(None, all_joules, all_idle, tokens, window_s))
    return tuple(lines)


def _by_device(series: Series) -> dict[Device, float]:
    values: dict[Device, float] = {}
    for key, value in series.items():
        named = dict(key)
        device = Device(server_of(key), named.get("device", "?"), named.get("source", "?"))
        values[device] = values.get(device, 0.0) + value
    return values


def _of(tokens: Mapping[Labels, float], server: str) -> dict[Labels, float]:
    return {key: value for key, value in tokens.items() if server_of(key) == server}


def _line(
    device: Device | None, joules: float | None, idle: float | None, tokens: Series, window_s: float
) -> DeviceLine:
    def per(num_tokens: float) -> float | None:
        return None if joules is None or not num_tokens else joules / num_tokens

    prompt, output = total(tokens, kind="prompt"), total(tokens, kind="output")
    watts = None if joules is None else joules / window_s
    return DeviceLine(device, watts, idle, per(prompt), per(output), per(prompt + output))
