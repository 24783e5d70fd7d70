"""What an energy source is: a named device that says how much it has used, or how much it draws now."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class CounterSample:
    """State of an energy counter, in microjoules since a moment that only differences are free of.

    A counter with `wrap_uj` starts again at 0 when it reaches that value; None: it never wraps.
    """

    energy_uj: int
    wrap_uj: int | None = None


@dataclass(frozen=True, slots=True)
class PowerSample:
    """Power that a device draws now, in watts."""

    power_w: float


Sample = CounterSample | PowerSample


class EnergySource(Protocol):
    """One device read in one way. `read` is called from one thread at a time."""

    @property
    def device(self) -> str:
        """Name of the device, such as `gpu0` (NVML's index) or `cpu-package-0`."""

    @property
    def source(self) -> str:
        """How it is read: `nvml-energy`, `nvml-power`, `rapl`; `replay` is no measurement."""

    def read(self) -> Sample:
        """Read once; every sample of one source is of the same class.

        Raises:
            EnergyError: it cannot be read now; a later read may succeed.
        """


@dataclass(frozen=True, slots=True)
class Found:
    """The sources of this machine, and for everything that cannot be read one line with reason and remedy."""

    sources: tuple[EnergySource, ...] = ()
    missing: tuple[str, ...] = ()
