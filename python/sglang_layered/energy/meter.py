"""Samples every energy source in a thread of its own and keeps one reading ready for whoever asks."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from sglang_layered.energy.account import Account, DeviceReading
from sglang_layered.energy.sources import EnergySource
from sglang_layered.errors import ConfigError

logger = logging.getLogger(__name__)

MAX_PERIOD_S = 0.5
MAX_BACKOFF_S = 5.0  # a source that fails is asked again within that time
STOP_TIMEOUT_S = 5.0  # a driver that hangs in a read does not keep a server from ending


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
        self._accounts = tuple(Account(source, round(MAX_BACKOFF_S / period_s)) for source in sources)
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
        for account in self._accounts:
            account.sample(self._clock, lambda at_s: self._work_s is None or at_s <= self._work_s)
        self._latest = self._read_out(self._clock())

    def reading(self) -> EnergyReading:
        """The latest reading; no source is read for it."""
        latest = self._latest
        return replace(latest, age_s=max(self._clock() - latest.at_s, 0.0))

    def _run(self) -> None:
        while not self._stopping.wait(self._period_s):
            self.sample()

    def _read_out(self, at_s: float) -> EnergyReading:
        return EnergyReading(at_s, 0.0, tuple(account.reading() for account in self._accounts))


def reading_record(reading: EnergyReading) -> dict[str, Any]:
    """The reading as JSON values; joules and watts rounded to a millionth, times to a millisecond."""
    now_s = reading.at_s + reading.age_s
    devices = []
    for device in reading.devices:
        record, lost, anomalies = asdict(device), device.lost, device.anomalies
        for name in ("joules", "error_j", "watts", "idle_watts"):
            record[name] = None if record[name] is None else round(record[name], 6)
        if lost is not None:
            record["lost"] = {"for_s": round(max(now_s - lost.since_s, 0.0), 3), "why": lost.why}
        record["anomalies"]["gap_s"] = round(anomalies.gap_s, 3)
        devices.append(record)
    return {"age_s": round(reading.age_s, 3), "devices": devices}


def joules_per_token(
    joules: float, num_prompt_tokens: int, num_output_tokens: int
) -> dict[str, float | None]:
    """Joules by the computed prompt tokens, by the output tokens, and by both; None where there were none.

    The same joules are divided each time: no split of energy between prompt and output is claimed.
    """
    counts = {"prompt": num_prompt_tokens, "output": num_output_tokens}
    counts["total"] = num_prompt_tokens + num_output_tokens
    return {kind: joules / count if count > 0 else None for kind, count in counts.items()}
