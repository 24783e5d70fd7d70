"""Adds the samples of one source up to joules and watts. It knows no thread, and only the times given.

Joules are kept as whole microjoules, so that nothing is lost however long a server runs. What cannot be
known is not filled in: it is counted in `Anomalies`, and the joules stay lower.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from math import ceil
from typing import Literal

from sglang_layered.energy.sources import CounterSample, EnergyError, PowerSample, Sample

MAX_GAP_S = 2.0  # two samples further apart say nothing of the power between them
MAX_DEVICE_W = 2000.0  # above what any GPU or CPU package draws; tells a wrap from a reset
LATE_S = 1.0  # a counter may be brought up to date that much late, so more comes at once
WINDOW_S = 1.0  # of `watts`
MIN_IDLE_S = 1.0  # a shorter idle window gives no idle power


@dataclass(frozen=True, slots=True)
class Anomalies:
    """What went wrong with one source so far, counted.

    `num_uncounted` are the intervals whose energy is not in the joules: gaps and backward clocks of a power
    source, resets and implausible values of any source. A gap of a counter is not among them: its difference
    is real energy.
    """

    num_failed_reads: int = 0
    num_losses: int = 0
    num_clock_backwards: int = 0
    num_counter_resets: int = 0
    num_implausible: int = 0  # more than MAX_DEVICE_W, or less than 0 W
    num_gaps: int = 0  # longer than MAX_GAP_S, with a loss in between, or until the first answer
    gap_s: float = 0.0
    num_uncounted: int = 0


Fault = Literal["num_counter_resets", "num_implausible"]


@dataclass(frozen=True, slots=True)
class Increment:
    """Energy between two samples, how far from the truth it may be, and why it was not counted."""

    energy_uj: int = 0
    error_uj: int = 0
    fault: Fault | None = None


def counter_increment(before: CounterSample, now: CounterSample, elapsed_s: float) -> Increment:
    """Difference of two counter states, over a wrap where the counter has one.

    A counter that went back without a wrap was reset: how much it had gained before is unknown, so nothing is
    counted. A reset that the counter has already made up for is not seen, and too little is counted. The
    error is what further whole wraps would hold at MAX_DEVICE_W.
    """
    most_uj = int(MAX_DEVICE_W * (max(elapsed_s, 0.0) + LATE_S) * 1e6)
    gained_uj = now.energy_uj - before.energy_uj
    went_back = gained_uj < 0
    if went_back and now.wrap_uj is not None:
        gained_uj += now.wrap_uj
    if not 0 <= gained_uj <= most_uj:
        return Increment(fault="num_counter_resets" if went_back else "num_implausible")
    hidden_wraps = 0 if now.wrap_uj is None else (most_uj - gained_uj) // now.wrap_uj
    return Increment(gained_uj, hidden_wraps * (now.wrap_uj or 0))


def power_increment(before: PowerSample, now: PowerSample, elapsed_s: float) -> Increment:
    """Trapezoid of two power samples.

    The error is half their difference times the time between: exact as a bound where the power between two
    samples stays within them. A peak that comes and goes between two samples is not seen; for a power that
    changes by at most L watts a second such peaks add at most L/4 times the square of the time between.
    """
    energy_uj = round((before.power_w + now.power_w) / 2 * elapsed_s * 1e6)
    error_uj = ceil(abs(now.power_w - before.power_w) / 2 * elapsed_s * 1e6) + 1  # 1 for rounding
    return Increment(energy_uj, error_uj)


class Mean:
    """Mean power over intervals, of all or of the last `window_s` seconds."""

    def __init__(self, window_s: float = float("inf")) -> None:
        self._window_s = window_s
        self._intervals: deque[tuple[float, int]] = deque()
        self._energy_uj = 0
        self.seconds = 0.0

    def add(self, elapsed_s: float, energy_uj: int) -> None:
        """Take an interval in; drop those that the window no longer reaches."""
        self._energy_uj += energy_uj
        self.seconds += elapsed_s
        if self._window_s == float("inf"):
            return
        self._intervals.append((elapsed_s, energy_uj))
        while self.seconds - self._intervals[0][0] >= self._window_s:
            dropped_s, dropped_uj = self._intervals.popleft()
            self._energy_uj -= dropped_uj
            self.seconds -= dropped_s

    def clear(self) -> None:
        """Forget all intervals."""
        self._intervals.clear()
        self._energy_uj, self.seconds = 0, 0.0

    def watts(self, min_s: float = 0.0) -> float | None:
        """Mean power, or None when there is no time or less than `min_s`."""
        return self._energy_uj / 1e6 / self.seconds if self.seconds > 0 and self.seconds >= min_s else None


class Account:
    """Energy of one source from its first sample on.

    `watts` and `idle_watts` are taken over whole intervals of at most MAX_GAP_S only, never over a gap, a
    reset, or a clock that went back.
    """

    def __init__(self) -> None:
        self.energy_uj = 0
        self.sampling_error_uj = 0
        self.largest_step_uj = 0  # of a counter, over one interval
        self.anomalies = Anomalies()
        self._before: tuple[Sample, float] | None = None
        self._waiting_since_s: float | None = None
        self._window = Mean(WINDOW_S)
        self._idle = Mean()

    @property
    def watts(self) -> float | None:
        """Mean power over the last WINDOW_S, or over what there is of it."""
        return self._window.watts()

    @property
    def idle_watts(self) -> float | None:
        """Mean power of the idle intervals, once they make MIN_IDLE_S."""
        return self._idle.watts(MIN_IDLE_S)

    def note_failure(self, at_s: float, *, lost: bool) -> None:
        """A read failed; with `lost` the source counts as lost from now on."""
        self._count(num_failed_reads=1, num_losses=int(lost))
        if self._before is None and self._waiting_since_s is None:
            self._waiting_since_s = at_s
        if lost:
            self._window.clear()

    def add(self, sample: Sample, at_s: float, *, idle: bool, after_loss: bool) -> None:
        """Add a sample taken at `at_s`; `idle`: no work was done up to then.

        Raises:
            EnergyError: it is a power that no device draws; nothing was added.
        """
        if isinstance(sample, PowerSample) and not 0 <= sample.power_w <= MAX_DEVICE_W:  # also not a number
            self._count(num_implausible=1)
            raise EnergyError(f"it reports {sample.power_w} W; see whether nvidia-smi reports the same")
        before, self._before = self._before, (sample, at_s)
        if before is None:
            if self._waiting_since_s is not None:
                self._count(num_gaps=1, gap_s=max(at_s - self._waiting_since_s, 0.0), num_uncounted=1)
            return
        elapsed_s = at_s - before[1]
        usual = 0 <= elapsed_s <= MAX_GAP_S and not after_loss
        if elapsed_s < 0:
            self._count(num_clock_backwards=1)
        elif not usual:
            self._count(num_gaps=1, gap_s=elapsed_s)
        increment = self._increment(before[0], sample, elapsed_s, usual)
        if increment is not None and usual and elapsed_s > 0:
            self._count_usual(increment, elapsed_s, idle)

    def _increment(self, before: Sample, now: Sample, elapsed_s: float, usual: bool) -> Increment | None:
        if isinstance(now, CounterSample) and isinstance(before, CounterSample):
            increment = counter_increment(before, now, elapsed_s)
            if usual:
                self.largest_step_uj = max(self.largest_step_uj, increment.energy_uj)
        elif isinstance(now, PowerSample) and isinstance(before, PowerSample) and usual:
            increment = power_increment(before, now, elapsed_s)
        else:
            self._count(num_uncounted=1)
            return None
        if increment.fault is not None:
            self._count(**{increment.fault: 1}, num_uncounted=1)
            return None
        self.energy_uj += increment.energy_uj
        self.sampling_error_uj += increment.error_uj
        return increment

    def _count_usual(self, increment: Increment, elapsed_s: float, idle: bool) -> None:
        self._window.add(elapsed_s, increment.energy_uj)
        if idle:
            self._idle.add(elapsed_s, increment.energy_uj)

    def _count(self, **more: float) -> None:
        self.anomalies = replace(
            self.anomalies, **{name: getattr(self.anomalies, name) + value for name, value in more.items()}
        )
