"""Adds the samples of one source up to joules and watts. It knows no thread, and only the times given.

Joules are kept as whole microjoules, so that nothing is lost however long a server runs. What cannot be
known is not filled in: it is counted in `Anomalies`, and the joules stay lower.

A source that fails is asked again after 1, 2, 4 ... samples. After NUM_FAILURES_TO_LOSE failures in a row it
is lost: its joules stay, its watts are None, one warning is logged. It is asked on, and comes back when it
answers. What a counter gained meanwhile is counted, unless it was reset; of a power source nothing is; both
state the gap.
"""

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import ceil
from typing import Literal

from sglang_layered.energy.sources import CounterSample, EnergySource, PowerSample, Sample
from sglang_layered.errors import EnergyError

logger = logging.getLogger(__name__)

MAX_GAP_S = 2.0  # two samples further apart say nothing of the power between them
MAX_DEVICE_W = 2000.0  # above what any GPU or CPU package draws; tells a wrap from a reset
LATE_S = 1.0  # a counter may be brought up to date that much late, so more comes at once
WINDOW_S = 1.0  # of `watts`
MIN_IDLE_S = 1.0  # a shorter idle window gives no idle power
NUM_FAILURES_TO_LOSE = 5


@dataclass(slots=True)
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


@dataclass(frozen=True, slots=True)
class Lost:
    """A source that no longer answers: the clock at its first failure in a row, and the last error."""

    since_s: float
    why: str


@dataclass(frozen=True, slots=True)
class DeviceReading:
    """One source, at the time of the reading it is in.

    `error_j` is how far `joules` may be from the device's own figures, whose accuracy is the vendor's: power
    between samples, wraps that cannot be seen, and how late a counter may be (the largest step seen).
    """

    device: str
    source: str
    joules: float  # since the meter's first sample of it; never falls
    error_j: float
    watts: float | None  # mean of the last second; None before two samples and while lost
    idle_watts: float | None  # mean before the first work; None when that was too short
    lost: Lost | None
    anomalies: Anomalies


Fault = Literal["num_counter_resets", "num_implausible"]
Increment = tuple[int, int]  # microjoules between two samples, and how far from the truth they may be


def counter_increment(before: CounterSample, now: CounterSample, elapsed_s: float) -> Increment | Fault:
    """Difference of two counter states, over a wrap where the counter has one; or why it is not counted.

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
        return "num_counter_resets" if went_back else "num_implausible"
    hidden_wraps = 0 if now.wrap_uj is None else (most_uj - gained_uj) // now.wrap_uj
    return gained_uj, hidden_wraps * (now.wrap_uj or 0)


def power_increment(before: PowerSample, now: PowerSample, elapsed_s: float) -> Increment:
    """Trapezoid of two power samples.

    The error is half their difference times the time between: exact as a bound where the power between two
    samples stays within them. A peak that comes and goes between two samples is not seen; for a power that
    changes by at most L watts a second such peaks add at most L/4 times the square of the time between.
    """
    energy_uj = round((before.power_w + now.power_w) / 2 * elapsed_s * 1e6)
    return energy_uj, ceil(abs(now.power_w - before.power_w) / 2 * elapsed_s * 1e6) + 1  # 1 for rounding


class Account:
    """One source: its energy from the first sample on, and whether it answers.

    `watts` and `idle_watts` are taken over whole intervals of at most MAX_GAP_S only, never over a gap, a
    reset, or a clock that went back.
    """

    def __init__(self, source: EnergySource, max_skipped: int = 0) -> None:
        """Ask a failing source at least once in `max_skipped` + 1 samples."""
        self.energy_uj = 0
        self.sampling_error_uj = 0
        self.largest_step_uj = 0  # of a counter, over one interval
        self.anomalies = Anomalies()
        self.lost: Lost | None = None
        self._source = source
        self._max_skipped = max_skipped
        self._num_to_skip = 0
        self._num_failures = 0  # in a row
        self._failing_since_s = 0.0
        self._before: tuple[Sample, float] | None = None
        self._window: deque[tuple[float, int]] = deque()  # seconds and microjoules of the latest intervals
        self._idle_s, self._idle_uj = 0.0, 0

    def sample(self, clock: Callable[[], float], is_idle: Callable[[float], bool]) -> None:
        """Read the source, if it is due; whatever a driver's library raises, others go on."""
        if self._num_to_skip > 0:
            self._num_to_skip -= 1
            return
        try:
            sample = self._source.read()
            at_s = clock()
            self.add(sample, at_s, idle=is_idle(at_s))
        except Exception as error:
            self.failed(str(error) if isinstance(error, EnergyError) else repr(error), clock())

    def reading(self) -> DeviceReading:
        """What is known by now."""
        return DeviceReading(
            device=self._source.device,
            source=self._source.source,
            joules=self.energy_uj / 1e6,
            error_j=(self.sampling_error_uj + self.largest_step_uj) / 1e6,
            watts=self.watts,
            idle_watts=self._idle_uj / 1e6 / self._idle_s if self._idle_s >= MIN_IDLE_S else None,
            lost=self.lost,
            anomalies=replace(self.anomalies),
        )

    @property
    def watts(self) -> float | None:
        """Mean power over the last WINDOW_S, or over what there is of it."""
        seconds = self._window_s()
        return sum(energy_uj for _, energy_uj in self._window) / 1e6 / seconds if seconds > 0 else None

    def failed(self, why: str, at_s: float) -> None:
        """A read failed; after NUM_FAILURES_TO_LOSE in a row the source is lost."""
        self.anomalies.num_failed_reads += 1
        self._num_failures += 1
        if self._num_failures == 1:
            self._failing_since_s = at_s
        self._num_to_skip = min(2 ** min(self._num_failures - 1, 30) - 1, self._max_skipped)
        if self._num_failures == NUM_FAILURES_TO_LOSE:
            self.anomalies.num_losses += 1
            self._window.clear()
            logger.warning(
                "Energy of %s (%s) can no longer be read, so its joules stand still: %s",
                self._source.device,
                self._source.source,
                why,
            )
        if self._num_failures >= NUM_FAILURES_TO_LOSE:
            self.lost = Lost(self._failing_since_s, why)

    def add(self, sample: Sample, at_s: float, *, idle: bool) -> None:
        """Add a sample taken at `at_s`; `idle`: no work was done up to then.

        Raises:
            EnergyError: it is a power that no device draws; nothing was added.
        """
        anomalies = self.anomalies
        if isinstance(sample, PowerSample) and not 0 <= sample.power_w <= MAX_DEVICE_W:  # also not a number
            anomalies.num_implausible += 1
            raise EnergyError(f"it reports {sample.power_w} W; see whether nvidia-smi reports the same")
        before, self._before = self._before, (sample, at_s)
        if before is not None:
            elapsed_s = at_s - before[1]
            usual = 0 <= elapsed_s <= MAX_GAP_S and self.lost is None
            if elapsed_s < 0:
                anomalies.num_clock_backwards += 1
            elif not usual:
                anomalies.num_gaps, anomalies.gap_s = anomalies.num_gaps + 1, anomalies.gap_s + elapsed_s
            self._count(before[0], sample, elapsed_s, usual, idle)
        elif self._num_failures:
            anomalies.num_gaps, anomalies.gap_s = 1, max(at_s - self._failing_since_s, 0.0)
            anomalies.num_uncounted += 1
        if self.lost is not None:
            logger.warning("Energy of %s (%s) is read again", self._source.device, self._source.source)
        self._num_failures, self.lost = 0, None

    def _count(self, before: Sample, now: Sample, elapsed_s: float, usual: bool, idle: bool) -> None:
        counted: Increment | Fault | None = None
        if isinstance(now, CounterSample) and isinstance(before, CounterSample):
            counted = counter_increment(before, now, elapsed_s)
        elif isinstance(now, PowerSample) and isinstance(before, PowerSample) and usual:
            counted = power_increment(before, now, elapsed_s)
        if not isinstance(counted, tuple):
            self.anomalies.num_uncounted += 1
            if counted is not None:
                setattr(self.anomalies, counted, getattr(self.anomalies, counted) + 1)
            return
        energy_uj, error_uj = counted
        self.energy_uj += energy_uj
        self.sampling_error_uj += error_uj
        if usual and isinstance(now, CounterSample):
            self.largest_step_uj = max(self.largest_step_uj, energy_uj)
        if not usual or elapsed_s == 0:
            return
        self._window.append((elapsed_s, energy_uj))
        while self._window_s() - self._window[0][0] >= WINDOW_S:
            self._window.popleft()
        if idle:
            self._idle_s, self._idle_uj = self._idle_s + elapsed_s, self._idle_uj + energy_uj

    def _window_s(self) -> float:
        return sum(seconds for seconds, _ in self._window)
