"""Energy over a window and per token. Pure: two readings and two counts in, joules out."""

from __future__ import annotations

from dataclasses import dataclass

from sglang_layered.energy.meter import DeviceReading, EnergyReading


@dataclass(frozen=True, slots=True)
class DeviceWindow:
    """Joules of one source between two readings.

    Not `complete`: part of the window's energy is missing, or energy from before is in it, because the source
    was lost at an end or had an interval that could not be counted.
    """

    device: str
    source: str
    joules: float
    error_j: float
    complete: bool


@dataclass(frozen=True, slots=True)
class JoulesPerToken:
    """All energy of a window over its tokens of one kind; None where there were none."""

    prompt_j: float | None
    output_j: float | None
    total_j: float | None


def energy_between(earlier: EnergyReading, later: EnergyReading) -> tuple[DeviceWindow, ...]:
    """Energy of every source that both readings of one meter have, in the order of `later`."""
    before = {(device.device, device.source): device for device in earlier.devices}
    pairs = ((before.get((device.device, device.source)), device) for device in later.devices)
    return tuple(_between(first, last) for first, last in pairs if first is not None)


def _between(first: DeviceReading, last: DeviceReading) -> DeviceWindow:
    uncounted = last.anomalies.num_uncounted - first.anomalies.num_uncounted
    return DeviceWindow(
        device=last.device,
        source=last.source,
        joules=last.joules - first.joules,
        error_j=last.sampling_error_j - first.sampling_error_j + last.edge_error_j,
        complete=first.lost is None and last.lost is None and uncounted == 0,
    )


def joules_per_token(joules: float, *, num_prompt_tokens: int, num_output_tokens: int) -> JoulesPerToken:
    """Divide a window's joules by its computed prompt tokens, its output tokens, and both together.

    The same joules are divided each time: no split of energy between prompt and output is claimed.
    """
    counts = (num_prompt_tokens, num_output_tokens, num_prompt_tokens + num_output_tokens)
    return JoulesPerToken(*(joules / count if count > 0 else None for count in counts))
