"""torch.cuda answers as if one GPU were there. To be called before sglang is imported: it asks once."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

USED_MIB = 600  # of the device's memory, before SGLang starts


@dataclass(frozen=True, slots=True)
class FakeDevice:
    """What a program can ask of a GPU."""

    name: str
    capability: tuple[int, int]
    memory_mib: int
    num_sms: int


DEVICES = {
    "h100": FakeDevice("NVIDIA H100 80GB HBM3", (9, 0), 81_559, 132),
    "h200": FakeDevice("NVIDIA H200", (9, 0), 143_771, 132),
    "b200": FakeDevice("NVIDIA B200", (10, 0), 183_359, 148),
}


def pretend(device: FakeDevice) -> None:
    """Let torch.cuda answer for this device."""
    free, total = (device.memory_mib - USED_MIB) << 20, device.memory_mib << 20
    properties = SimpleNamespace(
        name=device.name,
        major=device.capability[0],
        minor=device.capability[1],
        total_memory=total,
        multi_processor_count=device.num_sms,
        shared_memory_per_block_optin=227 << 10,
        shared_memory_per_multiprocessor=228 << 10,
        max_threads_per_multi_processor=2048,
        warp_size=32,
        L2_cache_size=50 << 20,
        gcnArchName="",
        is_integrated=False,
        uuid="emulated",
    )
    answers: dict[str, Any] = {
        "is_available": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_capability": device.capability,
        "get_device_name": device.name,
        "get_device_properties": properties,
        "mem_get_info": (free, total),
        "is_initialized": True,
        "synchronize": None,
        "empty_cache": None,
    }
    for name, answer in answers.items():
        setattr(torch.cuda, name, answering(answer))


def pretend_memory(device: FakeDevice) -> None:
    """SGLang asks nvidia-smi for the memory; to be called when its modules are there."""
    import sglang.srt.server_args as server_args
    import sglang.srt.utils.common as common

    for module in (common, server_args):
        for name in ("get_nvgpu_memory_capacity", "get_device_memory_capacity"):
            if hasattr(module, name):
                setattr(module, name, answering(device.memory_mib))


def answering(answer: Any) -> Any:
    """A function that always says this; a new one each time, since torch tells functions apart."""
    return lambda *args, **kwargs: answer
