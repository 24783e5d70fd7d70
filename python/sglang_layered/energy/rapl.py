"""CPU packages through RAPL, as Linux's powercap files show it.

A package is cores, caches and memory controller; its parts (core, uncore, dram) and the whole platform (psys)
are left out, so that nothing is counted twice. AMD's packages appear under the same names.
"""

import re
from collections.abc import Callable
from pathlib import Path

from sglang_layered.energy.sources import CounterSample, EnergySource, Found
from sglang_layered.errors import EnergyError

POWERCAP = Path("/sys/class/powercap")
ZONE = re.compile(r"intel-rapl:\d+")
READABLE = "only root may read it: chmod a+r energy_uj in that folder, or run as root"
NO_RAPL = "load intel_rapl_msr on the host; virtual machines and some containers show no RAPL"

ReadText = Callable[[Path], str]


class RaplPackage:
    """Energy counter of one CPU package; it wraps at `max_energy_range_uj`.

    The kernel's range is one step of the hardware counter (some 15 to 61 microjoules) short of the true one,
    so each wrap loses that much.
    """

    source = "rapl"

    def __init__(self, zone: Path, read_text: ReadText = Path.read_text) -> None:
        """Read the name and the range of a zone.

        Raises:
            EnergyError: they cannot be read, or hold no number.
        """
        self._zone = zone
        self._read_text = read_text
        self.device = f"cpu-{self._text('name')}"
        self._wrap_uj = self._number("max_energy_range_uj")

    def read(self) -> CounterSample:
        """Read the counter."""
        return CounterSample(self._number("energy_uj"), self._wrap_uj)

    def _number(self, name: str) -> int:
        text = self._text(name)
        try:
            return int(text)
        except ValueError as error:
            raise EnergyError(
                f"RAPL: {name} of {self._zone.name} holds {text!r}; no remedy is known"
            ) from error

    def _text(self, name: str) -> str:
        try:
            return self._read_text(self._zone / name).strip()
        except OSError as error:
            remedy = READABLE if isinstance(error, PermissionError) else NO_RAPL
            raise EnergyError(f"RAPL: {name} of {self._zone.name}: {error.strerror}; {remedy}") from error


def find_packages(powercap: Path = POWERCAP, read_text: ReadText = Path.read_text) -> Found:
    """Sources of the CPU packages below a powercap folder."""
    try:
        zones = sorted(path for path in powercap.iterdir() if ZONE.fullmatch(path.name))
    except OSError as error:
        return Found(missing=(f"CPU: RAPL: {powercap}: {error.strerror}; {NO_RAPL}",))
    sources: list[EnergySource] = []
    missing: list[str] = []
    for zone in zones:
        try:
            package = RaplPackage(zone, read_text)
            if package.device.startswith("cpu-package-"):
                package.read()
                sources.append(package)
        except EnergyError as error:
            missing.append(f"CPU: {error}")
    if not sources and not missing:
        missing.append(f"CPU: RAPL: no package in {powercap}; {NO_RAPL}")
    return Found(tuple(sources), tuple(missing))
