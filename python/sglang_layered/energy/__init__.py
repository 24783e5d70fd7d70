"""Energy of GPUs (NVML) and CPU packages (RAPL): where it is read, how it adds up, what is said of it.

It knows no request, tensor, torch or sglang, and loads pynvml only to look for GPUs.
"""

from sglang_layered.energy.find import find_sources
from sglang_layered.energy.meter import DeviceReading, EnergyMeter, EnergyReading, Lost
from sglang_layered.energy.report import energy_findings, reading_record
from sglang_layered.energy.sources import EnergySource, Found
from sglang_layered.energy.windows import energy_between, joules_per_token

__all__ = [
    "DeviceReading",
    "EnergyMeter",
    "EnergyReading",
    "EnergySource",
    "Found",
    "Lost",
    "energy_between",
    "energy_findings",
    "find_sources",
    "joules_per_token",
    "reading_record",
]
