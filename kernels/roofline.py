"""Peaks of known devices, and how near a time comes to them. An unknown device has no fraction."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Peaks:
    """What a device can do at most, by its maker's data sheet."""

    bytes_per_s: float
    flops_per_s: float  # bf16, dense


PEAKS = {"NVIDIA H200": Peaks(bytes_per_s=4.8e12, flops_per_s=989e12)}  # names as torch and nvidia-smi say


def roofline_s(num_bytes: int, num_flops: int, peaks: Peaks) -> float:
    """Least seconds that moving the bytes and doing the operations, side by side, can take."""
    return max(num_bytes / peaks.bytes_per_s, num_flops / peaks.flops_per_s)
