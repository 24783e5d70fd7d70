"""Samples every energy source in a thread of its own and keeps one reading ready for whoever asks.

A source that fails is asked again after 1, 2, 4 ... sampling periods. After NUM_FAILURES_TO_LOSE failures in
a row it is lost: its joules stay, its watts are None, one warning is logged. It is asked on, at least every
MAX_BACKOFF_S, and comes back when it answers. What a counter gained meanwhile is counted, unless it was
reset; of a power source nothing is; both state the gap.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from sglang_layered.energy.account import Account, Anomalies
from sglang_layered.energy.sources import EnergyError, EnergySource
from sglang_layered.errors import ConfigError

logger = logging.getLogger(__name__)

MAX_PERIOD_S = 0.5
NUM_FAILURES_TO_LOSE = 5
MAX_BACKOFF_S = 5.0
STOP_TIMEOUT_S = 5.0  # a driver that hangs in a read does not keep a server from ending


@dataclass(frozen=True, slots=True)
class Lost:
    """A source that no longer answers: the clock at its first failure in a row, and the last error."""

    since_s: float
    why: str


@dataclass(frozen=True, slots=True)
class DeviceReading:
    """One source, at the time of the reading it is in."""

    device: str
    source: str
    joules: float  # since the meter's first sample of it; never falls
    sampling_error_j: float  # of `joules`: power between samples, wraps that cannot be seen
    edge_error_j: float  # of any window: how late a counter may be at its ends; the largest step seen
    watts: float | None  # mean of the last second; None before two samples and while lost
    idle_watts: float | None  # mean before the first work; None when that was too short
    lost: Lost | None
    anomalies: Anomalies

    @property
    def error_j(self) -> float:
        """How far `joules` may be from the device's own figures; their accuracy is the vendor's."""
        return self.sampling_error_j + self.edge_error_j


@dataclass(frozen=True, slots=True)
class EnergyReading:
    """All sources at `at_s` of the meter's clock, `age_s` before the reading was asked for."""

    at_s: float
    age_s: float
    devices: tuple[DeviceReading, ...]


class EnergyMeter:
    """Reads its sources every `period_s` seconds from `start()` to `stop()`.

    `reading()` and `note_work()` may be called from any thread and never wait.
    """

    def __init__(
        self,
        sources: Sequence[EnergySource],
        period_s: float = 0.1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make a meter that has sampled nothing.

        Raises:
            ConfigError: `period_s` is not in (0, 0.5].
        """
        if not 0 < period_s <= MAX_PERIOD_S:
            raise ConfigError(f"period_s must be above 0 and at most {MAX_PERIOD_S}, not {period_s}")
        self._period_s = period_s
        self._clock = clock
        self._watched = tuple(_Watched(source, round(MAX_BACKOFF_S / period_s)) for source in sources)
        self._work_s: float | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="energy-meter", daemon=True)
        self._latest = self._read_out(clock())

    def start(self) -> None:
        """Take the first sample here, the others in a thread. Once only."""
        self.sample()
        self._thread.start()

    def stop(self) -> None:
        """End the thread and wait for it; the last reading stays. A second call does nothing."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(STOP_TIMEOUT_S)
            if self._thread.is_alive():
                logger.warning("The energy meter's thread hangs in a read and is left behind")

    def note_work(self) -> None:
        """The first engine step begins: the idle window ends. Later calls do nothing."""
        if self._work_s is None:
            self._work_s = self._clock()

    def sample(self) -> None:
        """Read every source once that is due. The thread does this; by hand only where it does not run."""
        for watched in self._watched:
            watched.sample(self._clock, lambda at_s: self._work_s is None or at_s <= self._work_s)
        self._latest = self._read_out(self._clock())

    def reading(self) -> EnergyReading:
        """The latest reading; no source is read for it."""
        latest = self._latest
        return replace(latest, age_s=max(self._clock() - latest.at_s, 0.0))

    def _run(self) -> None:
        while not self._stopping.wait(self._period_s):
            self.sample()

    def _read_out(self, at_s: float) -> EnergyReading:
        return EnergyReading(at_s, 0.0, tuple(watched.reading() for watched in self._watched))


class _Watched:
    """One source with its account, its failures in a row, and how many samples to leave it alone."""

    def __init__(self, source: EnergySource, max_skipped: int) -> None:
        self._source = source
        self._max_skipped = max_skipped
        self._account = Account()
        self._num_failures = 0
        self._failing_since_s = 0.0
        self._num_to_skip = 0
        self._lost: Lost | None = None

    def sample(self, clock: Callable[[], float], is_idle: Callable[[float], bool]) -> None:
        if self._num_to_skip > 0:
            self._num_to_skip -= 1
            return
        try:
            sample = self._source.read()
            at_s = clock()
            self._account.add(sample, at_s, idle=is_idle(at_s), after_loss=self._lost is not None)
        except EnergyError as error:
            self._failed(str(error), clock())
        except Exception as error:  # whatever a driver's library raises, the other sources go on
            self._failed(repr(error), clock())
        else:
            self._answered()

    def reading(self) -> DeviceReading:
        account = self._account
        return DeviceReading(
            device=self._source.device,
            source=self._source.source,
            joules=account.energy_uj / 1e6,
            sampling_error_j=account.sampling_error_uj / 1e6,
            edge_error_j=account.largest_step_uj / 1e6,
            watts=account.watts,
            idle_watts=account.idle_watts,
            lost=self._lost,
            anomalies=account.anomalies,
        )

    def _answered(self) -> None:
        if self._lost is not None:
            logger.warning("Energy of %s (%s) is read again", self._source.device, self._source.source)
        self._num_failures, self._lost = 0, None

    def _failed(self, why: str, at_s: float) -> None:
        self._num_failures += 1
        if self._num_failures == 1:
            self._failing_since_s = at_s
        self._num_to_skip = min(2 ** min(self._num_failures - 1, 30) - 1, self._max_skipped)
        newly_lost = self._num_failures == NUM_FAILURES_TO_LOSE
        self._account.note_failure(at_s, lost=newly_lost)
        if self._num_failures >= NUM_FAILURES_TO_LOSE:
            self._lost = Lost(self._failing_since_s, why)
        if newly_lost:
            logger.warning(
                "Energy of %s (%s) can no longer be read, so its joules stand still: %s",
                self._source.device,
                self._source.source,
                why,
            )
