"""How values of a unit are written on an axis."""

from __future__ import annotations

from dataclasses import dataclass

from sglang_layered_lab.dashboard.model import Unit

_BINARY = ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, "B"))
_SECONDS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))
_JOULES = ((1e3, "kJ"), (1.0, "J"), (1e-3, "mJ"), (1e-6, "µJ"))
_FIXED: dict[Unit, str] = {"watt": "W", "short": "", "reqps": "requests / s", "ops": "1 / s"}


@dataclass(frozen=True, slots=True)
class Scale:
    """Values are divided by `divisor` and then have the unit `label`."""

    divisor: float
    label: str


def scale_for(unit: Unit, largest: float) -> Scale:
    """Choose the prefix in which `largest`, a value in the unit of the queries, is at least 1."""
    if unit == "percentunit":
        return Scale(0.01, "%")
    if unit in ("bytes", "Bps"):
        scale = _largest_below(_BINARY, largest)
        return scale if unit == "bytes" else Scale(scale.divisor, f"{scale.label} / s")
    if unit == "s":
        return _largest_below(_SECONDS, largest)
    if unit == "joule":
        return _largest_below(_JOULES, largest)
    return Scale(1.0, _FIXED[unit])


def _largest_below(prefixes: tuple[tuple[float, str], ...], largest: float) -> Scale:
    for divisor, label in prefixes:
        if largest >= divisor:
            return Scale(divisor, label)
    return (
        Scale(*prefixes[-1]) if largest > 0 else Scale(1.0, next(name for one, name in prefixes if one == 1))
    )
