"""Replays energy from a file; a server asks `replayed` for its sources when ENVIRONMENT and a file are set.

The file is JSON:

    {"loop": true, "devices": [
      {"device": "gpu0",
       "samples": [{"at_s": 0, "watts": 90}, {"at_s": 5, "error": "lost"}, {"at_s": 6, "watts": 300}]},
      {"device": "cpu-package-0", "wrap_j": 262143,
       "samples": [{"at_s": 0, "joules": 10}, {"at_s": 6, "joules": 900}]}
    ]}

`at_s` counts from the first read. Watts and errors hold until the next entry; joules grow evenly to the next
entry, where fewer joules are a reset of the counter. With `wrap_j` a read gives the joules modulo it. With
`loop` the last entry is the moment at which the script starts again, its counters going on; without it, the
last entry stays.
"""

from __future__ import annotations

import json
import os
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite
from pathlib import Path
from typing import Any

from sglang_layered.energy.find import SOURCES_VARIABLE
from sglang_layered.energy.sources import CounterSample, PowerSample, Sample
from sglang_layered.errors import ConfigError, EnergyError

REPLAY_VARIABLE = "ENERGY_REPLAY"
MIN_WRAP_J = 10_000.0  # below it a reset could not be told from a wrap
KINDS = ("joules", "watts", "error")


@dataclass(frozen=True, slots=True)
class Entry:
    """State from `at_s` on; exactly one of the others is set."""

    at_s: float
    joules: float | None = None
    watts: float | None = None
    error: str | None = None

    def __post_init__(self) -> None:
        if sum(getattr(self, kind) is not None for kind in KINDS) != 1:
            raise ConfigError(f"the entry at {self.at_s} s needs one of {', '.join(KINDS)}")
        numbers = [value for value in (self.at_s, self.joules, self.watts) if value is not None]
        if not all(isinstance(value, int | float) and isfinite(value) and value >= 0 for value in numbers):
            raise ConfigError(f"the entry at {self.at_s} s holds a value that is no number from 0 on")


class ReplaySource:
    """One device of a replay; its time starts with the first read."""

    source = "replay"

    def __init__(
        self,
        device: str,
        entries: Sequence[Entry],
        *,
        wrap_j: float | None = None,
        loop: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Check the script.

        Raises:
            ConfigError: it does not start at 0, does not go forward, mixes joules and watts, or cannot loop.
        """
        self.device = device
        self._entries = tuple(entries)
        self._times_s = [entry.at_s for entry in entries]
        self._wrap_uj = None if wrap_j is None else round(wrap_j * 1e6)
        self._loop = loop
        self._clock = clock
        self._start_s: float | None = None
        if fault := self._fault(wrap_j):
            raise ConfigError(f"device {device}: {fault}")
        joules = [entry.joules for entry in entries if entry.joules is not None]
        self._joules_per_turn = joules[-1] - joules[0] if joules else 0.0

    def read(self) -> Sample:
        """Read what the script says for now.

        Raises:
            EnergyError: the script says so.
        """
        now_s = self._clock()
        if self._start_s is None:
            self._start_s = now_s
        turn, at_s = 0.0, max(now_s - self._start_s, 0.0)
        if self._loop:
            turn, at_s = divmod(at_s, self._times_s[-1])
        index = bisect_right(self._times_s, at_s) - 1
        entry = self._entries[index]
        if entry.error is not None:
            raise EnergyError(entry.error)
        if entry.watts is not None:
            return PowerSample(entry.watts)
        energy_uj = round((turn * self._joules_per_turn + self._joules(index, at_s)) * 1e6)
        return CounterSample(energy_uj % self._wrap_uj if self._wrap_uj else energy_uj, self._wrap_uj)

    def _joules(self, index: int, at_s: float) -> float:
        entry, following = self._entries[index], self._entries[index + 1 : index + 2]
        assert entry.joules is not None
        if not following or following[0].joules is None or following[0].joules < entry.joules:
            return entry.joules
        part = (at_s - entry.at_s) / (following[0].at_s - entry.at_s)
        return min(entry.joules + part * (following[0].joules - entry.joules), following[0].joules)

    def _fault(self, wrap_j: float | None) -> str | None:
        if not self._entries or self._times_s[0] != 0:
            return "give a first entry with at_s 0"
        if any(low >= high for low, high in pairwise(self._times_s)):
            return "give entries with growing at_s"
        kinds = {
            "joules" if entry.joules is not None else "watts"
            for entry in self._entries
            if entry.error is None
        }
        if len(kinds) > 1:
            return "give joules or watts, not both"
        if wrap_j is not None and not wrap_j >= MIN_WRAP_J:
            return f"give a wrap_j from {MIN_WRAP_J:.0f} on, not {wrap_j}"
        joules = [entry.joules for entry in self._entries if entry.joules is not None]
        if self._loop and (len(self._entries) < 2 or (joules and joules[-1] < joules[0])):
            return "give a loop two entries or more, the last joules not below the first"
        return None


def environment_of(path: Path) -> dict[str, str]:
    """What makes a server of ours replay `path` in place of its machine's sources."""
    found = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {SOURCES_VARIABLE: "energy_replay:replayed", REPLAY_VARIABLE: str(path), "PYTHONPATH": found}


def replayed() -> tuple[ReplaySource, ...]:
    """The devices of the file that the environment names."""
    return load_replay(Path(os.environ[REPLAY_VARIABLE]))


def load_replay(path: Path, clock: Callable[[], float] = time.monotonic) -> tuple[ReplaySource, ...]:
    """The devices of a replay file.

    Raises:
        ConfigError: the file cannot be read or does not hold what the module's docstring shows.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        sources = tuple(_source(item, bool(record.get("loop")), clock) for item in record["devices"])
        names = [source.device for source in sources]
        if not names or len(set(names)) != len(names):
            raise ConfigError(f"devices {names}: give one or more, each once")
    except OSError as error:
        raise ConfigError(f"{REPLAY_VARIABLE}: {error}; name a file that can be read") from error
    except ConfigError as error:
        raise ConfigError(f"{REPLAY_VARIABLE}={path.name}: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{REPLAY_VARIABLE}={path.name}: {error!r}; correct the file") from error
    return sources


def _source(item: dict[str, Any], loop: bool, clock: Callable[[], float]) -> ReplaySource:
    entries = [Entry(**sample) for sample in item["samples"]]
    return ReplaySource(str(item["device"]), entries, wrap_j=item.get("wrap_j"), loop=loop, clock=clock)
