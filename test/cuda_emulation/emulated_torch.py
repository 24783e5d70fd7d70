"""CUDA tensors on the CPU, NCCL as gloo, Triton interpreted. To be called before sglang is imported."""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.distributed_c10d as c10d
from torch.overrides import TorchFunctionMode

from emulated_streams import CPU, emulate_streams
from fake_device import FakeDevice, answering, pretend

MODES: list[TorchFunctionMode] = []  # kept: a mode that is collected is no longer on

NAME_A_DEVICE = frozenset({"pin_memory", "cuda", "to", "type"})


class OnCpu(TorchFunctionMode):
    """Makes every device but meta the CPU and drops pinning. A move between host and device still copies."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", "")
        if name not in NAME_A_DEVICE and not kwargs.keys() & {"device", "pin_memory"}:
            return func(*args, **kwargs)
        if name == "pin_memory":
            return args[0]
        if name == "cuda":
            return args[0].clone()
        moves = name == "to" and any(_is_other(value) for value in (*args[1:], kwargs.get("device")))
        if "device" in kwargs:
            kwargs["device"] = _on_cpu(kwargs["device"])
        if kwargs.get("pin_memory"):
            kwargs["pin_memory"] = False
        if name in ("to", "type"):
            args = tuple(_on_cpu(value) for value in args)
        result = func(*args, **kwargs)
        if moves and result is args[0]:
            return result.clone()
        return result


def _is_device(value: Any) -> bool:
    return isinstance(value, (torch.device, str)) and str(value).split(":")[0] in ("cpu", "cuda")


def _is_other(device: Any) -> bool:
    """A device by its name; one that was taken from a tensor is where the tensors are."""
    return _is_device(device) and device != CPU


def _on_cpu(value: Any) -> Any:
    return CPU if _is_device(value) else value


def emulate(device: FakeDevice) -> None:
    """From here on this process has that GPU, for all that asks torch."""
    os.environ.setdefault("TRITON_INTERPRET", "1")
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    pretend(device)
    emulate_streams()
    _emulate_memory()
    _emulate_process_groups()
    MODES.append(OnCpu())
    MODES[-1].__enter__()


def _emulate_memory() -> None:
    cuda: Any = torch.cuda
    cuda.device = _DeviceContext
    for name in ("set_device", "init", "_lazy_init", "manual_seed", "manual_seed_all", "ipc_collect"):
        setattr(cuda, name, answering(None))
    cuda.graph_pool_handle = lambda: (0, 1)
    cuda.get_rng_state = lambda *args, **kwargs: torch.random.get_rng_state()
    for name in ("memory_allocated", "memory_reserved", "max_memory_allocated", "reset_peak_memory_stats"):
        setattr(cuda, name, answering(0))
    host: Any = torch._C
    host._host_emptyCache = answering(None)
    module: Any = torch
    module.get_device_module = _device_module
    tensor: Any = torch.Tensor
    tensor.pin_memory = lambda self, *args, **kwargs: self
    tensor.cuda = lambda self, *args, **kwargs: self.clone()
    tensor.record_stream = answering(None)


class _DeviceContext:
    def __init__(self, *args: Any) -> None:
        pass

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        pass


real_device_module = torch.get_device_module


def _device_module(device: Any = None) -> Any:
    name = "cuda" if device is None else str(device)
    return torch.cuda if name.startswith("cuda") else real_device_module(device)


def _emulate_process_groups() -> None:
    for name in ("init_process_group", "new_group"):
        made = _with_gloo(getattr(c10d, name))
        setattr(dist, name, made)
        setattr(c10d, name, made)


def _with_gloo(make: Any) -> Any:
    def make_with_gloo(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("backend") is not None:
            kwargs["backend"] = "gloo"
        kwargs.pop("device_id", None)
        return make(*("gloo" if value == "nccl" else value for value in args), **kwargs)

    return make_with_gloo
