"""What the machine's processors do beside a measurement."""

from __future__ import annotations

import time
from contextlib import suppress

import psutil  # type: ignore[import-untyped]


class OtherLoad:
    """Processor time that goes to others than this process and those that it started, from now on.

    What they started must be alive now and then, or have begun and ended in between.
    """

    def __init__(self) -> None:
        self._start_s, self._others_s = time.monotonic(), _others_s()

    def cores(self) -> float:
        """Mean number of cores that others have kept busy."""
        return (_others_s() - self._others_s) / (time.monotonic() - self._start_s)


def _others_s() -> float:
    """CPU seconds of all cores, stolen ones too, less those of our process tree and of its ended children."""
    machine, me = psutil.cpu_times(), psutil.Process()
    busy_s = machine.user + machine.nice + machine.system + machine.irq + machine.softirq + machine.steal
    for process in (me, *me.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            own = process.cpu_times()
            busy_s -= own.user + own.system + own.children_user + own.children_system
    return float(busy_s)
