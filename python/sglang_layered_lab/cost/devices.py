"""Devices by their rates: the data sheets' peaks, and the part of them that large kernels reach."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import MappingProxyType

from sglang_layered_lab.cost.costs import StepCosts


@dataclass(frozen=True, slots=True)
class Device:
    """One device, or several that share every layer by tensor parallelism."""

    title: str
    bytes_per_s: float
    flop_per_s: float  # bf16, dense
    link_bytes_per_s: float | None  # an all-reduce's payload per second; None for one device
    source: str

    def costs(self) -> StepCosts:
        """The roofline: overlap within a part, no launch, no host. A measured step is slower."""
        link_s = 0.0 if self.link_bytes_per_s is None else 1 / self.link_bytes_per_s
        flop_s = 1 / self.flop_per_s
        return StepCosts("max", 1 / self.bytes_per_s, flop_s, flop_s, link_byte=link_s)


H200 = Device(
    title="H200",
    bytes_per_s=4.3e12,
    flop_per_s=790e12,
    link_bytes_per_s=None,
    source="90 % of 4.8 TB/s and 80 % of 989 TFLOP/s: what large copies and products reach",
)
TWO_H100 = Device(
    title="2x H100, tensor parallel",
    bytes_per_s=2 * 0.9 * 3.35e12,
    flop_per_s=2 * 0.8 * 989e12,
    link_bytes_per_s=0.8 * 450e9,
    source="90 % of 3.35 TB/s and 80 % of 989 TFLOP/s each; all-reduces at 80 % of NVLink's 450 GB/s",
)
DEVICES = MappingProxyType({"h200": H200, "2xh100": TWO_H100})


def scaled(costs: StepCosts, measured_on: Device, wanted: Device) -> StepCosts:
    """Costs fitted on one device, carried to another by the ratios of their rates; calls cost the same."""
    flop_ratio = measured_on.flop_per_s / wanted.flop_per_s
    return replace(
        costs,
        byte=costs.byte * measured_on.bytes_per_s / wanted.bytes_per_s,
        flop=costs.flop * flop_ratio,
        attention_flop=costs.attention_flop * flop_ratio,
        link_byte=wanted.costs().link_byte,
    )
