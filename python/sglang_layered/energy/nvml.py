"""GPUs through NVML: the total-energy counter where the GPU has one, else its power.

NVML measures a whole board, so other processes on the same GPU are in it. Its own accuracy is not known here.
"""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any

from sglang_layered.energy.sources import CounterSample, EnergySource, Found, PowerSample
from sglang_layered.errors import ConfigError, EnergyError

VISIBLE = "CUDA_VISIBLE_DEVICES"

REMEDIES = {
    "NVML_ERROR_LIBRARY_NOT_FOUND": "install the NVIDIA driver; give a container its GPUs (--gpus all)",
    "NVML_ERROR_DRIVER_NOT_LOADED": "load the NVIDIA driver until nvidia-smi answers",
    "NVML_ERROR_LIB_RM_VERSION_MISMATCH": "the driver was updated while in use: restart the host",
    "NVML_ERROR_NO_PERMISSION": "let this user open /dev/nvidiactl and /dev/nvidia*",
    "NVML_ERROR_NOT_SUPPORTED": "none for this GPU: it offers neither an energy counter nor its power",
    "NVML_ERROR_INVALID_ARGUMENT": "give an index that nvidia-smi -L lists",
    "NVML_ERROR_GPU_IS_LOST": "see the kernel log for the Xid; reset the GPU or restart the host",
    "NVML_ERROR_RESET_REQUIRED": "reset the GPU (nvidia-smi --gpu-reset) or restart the host",
}
OTHER_REMEDY = "see whether nvidia-smi answers"


class Nvml:
    """NVML in this process, stopped after each failure and started again by the next call.

    A new start finds a GPU again after its driver was reloaded. It does nothing while another user of NVML in
    this process holds the library open.
    """

    def __init__(self, module: Any) -> None:
        self._module = module
        self._running = False
        self._handles: dict[str, Any] = {}

    @classmethod
    def load(cls, module: Any | None = None) -> "Nvml":
        """Import pynvml; `module` stands in for it.

        Raises:
            EnergyError: there is no pynvml.
        """
        if module is None:
            try:
                module = import_module("pynvml")
            except ImportError as error:
                raise EnergyError(f"{error}; install nvidia-ml-py") from error
        return cls(module)

    def call(self, function: str, *arguments: Any) -> Any:
        """Call an NVML function by name.

        Raises:
            EnergyError: NVML's error, with what can be done about it.
        """
        try:
            if not self._running:
                self._module.nvmlInit()
                self._running = True
            return getattr(self._module, function)(*arguments)
        except self._module.NVMLError as error:
            self._stop()
            remedies = {getattr(self._module, name, None): remedy for name, remedy in REMEDIES.items()}
            raise EnergyError(f"NVML: {error}; {remedies.get(error.value, OTHER_REMEDY)}") from error

    def call_gpu(self, function: str, uuid: str) -> Any:
        """Call a function of the GPU with this UUID, whatever its index is by now.

        Raises:
            EnergyError: the GPU or NVML does not answer.
        """
        if uuid not in self._handles:
            self._handles[uuid] = self.call("nvmlDeviceGetHandleByUUID", uuid)
        return self.call(function, self._handles[uuid])

    def offers(self, function: str, handle: Any) -> bool:
        """Whether a GPU has this function; any other trouble counts as having it, a read will tell."""
        lacking = (self._module.NVML_ERROR_NOT_SUPPORTED, self._module.NVML_ERROR_FUNCTION_NOT_FOUND)
        try:
            getattr(self._module, function)(handle)
        except self._module.NVMLError as error:
            return error.value not in lacking
        return True

    def _stop(self) -> None:
        self._handles.clear()
        if self._running:
            self._running = False
            with suppress(self._module.NVMLError):
                self._module.nvmlShutdown()


ENERGY, POWER = "nvmlDeviceGetTotalEnergyConsumption", "nvmlDeviceGetPowerUsage"


class GpuSource:
    """A GPU's energy since its driver was loaded, or its power where it has no such counter.

    NVML gives millijoules, in 64 bits that do not wrap; or milliwatts, which from Ampere on (but for GA100)
    are averaged over a second.
    """

    def __init__(self, nvml: Nvml, device: str, uuid: str, has_counter: bool) -> None:
        self.device = device
        self.source = "nvml-energy" if has_counter else "nvml-power"
        self._nvml = nvml
        self._uuid = uuid
        self._has_counter = has_counter

    def read(self) -> CounterSample | PowerSample:
        """Read the counter or the power."""
        if self._has_counter:
            return CounterSample(int(self._nvml.call_gpu(ENERGY, self._uuid)) * 1000)
        return PowerSample(self._nvml.call_gpu(POWER, self._uuid) / 1e3)


def find_gpus(gpu_ids: Sequence[int] | None, module: Any | None = None) -> Found:
    """Sources of the GPUs with these NVML indices; None means all that NVML sees."""
    try:
        nvml = Nvml.load(module)
        count = int(nvml.call("nvmlDeviceGetCount"))
    except EnergyError as error:
        return Found(missing=(f"GPU: {error}",))
    if gpu_ids is None and count == 0:
        return Found(missing=("GPU: NVML sees none; give a container its GPUs (--gpus all)",))
    sources: list[EnergySource] = []
    missing: list[str] = []
    for index in dict.fromkeys(range(count) if gpu_ids is None else gpu_ids):
        try:
            sources.append(_find_gpu(nvml, index))
        except EnergyError as error:
            missing.append(f"gpu{index}: {error}")
    return Found(tuple(sources), tuple(missing))


def _find_gpu(nvml: Nvml, index: int) -> EnergySource:
    handle = nvml.call("nvmlDeviceGetHandleByIndex", index)
    uuid = str(nvml.call("nvmlDeviceGetUUID", handle))
    found = GpuSource(nvml, f"gpu{index}", uuid, nvml.offers(ENERGY, handle))
    found.read()
    return found


def nvml_indices(
    cuda_ids: Sequence[int] | None = None,
    environ: Mapping[str, str] = os.environ,
    module: Any | None = None,
) -> tuple[int, ...] | None:
    """NVML indices of CUDA device numbers; `cuda_ids` None means every visible device.

    CUDA_VISIBLE_DEVICES may hold indices or UUIDs, also shortened ones, and ends at a negative index, as CUDA
    reads it. Indices are taken for NVML's, which holds where all GPUs are alike or
    CUDA_DEVICE_ORDER=PCI_BUS_ID is set. Without the variable the numbers stay, and None stays None.

    Raises:
        ConfigError: an entry names no GPU, a MIG slice (NVML has no energy of a slice), or more than one GPU;
            or a device number is not visible.
        EnergyError: there are UUIDs to look up, and NVML cannot be used.
    """
    visible = environ.get(VISIBLE)
    if visible is None:
        return None if cuda_ids is None else tuple(cuda_ids)
    indices = _visible_indices(visible, module)
    if cuda_ids is None:
        return indices
    hidden = [number for number in cuda_ids if not 0 <= number < len(indices)]
    if hidden:
        raise ConfigError(
            f"{VISIBLE}={visible} shows {len(indices)} GPUs, not device {hidden[0]}; show it too"
        )
    return tuple(indices[number] for number in cuda_ids)


def _visible_indices(visible: str, module: Any | None) -> tuple[int, ...]:
    uuids: list[str] | None = None
    indices: list[int] = []
    for entry in filter(None, (part.strip() for part in visible.split(","))):
        if entry.lstrip("-").isdecimal():
            if entry.startswith("-"):
                break
            indices.append(int(entry))
            continue
        if entry.startswith("MIG-"):
            raise ConfigError(f"{VISIBLE}: NVML has no energy of {entry}; leave out --enable-energy-metrics")
        uuids = _uuids(module) if uuids is None else uuids
        matches = [index for index, uuid in enumerate(uuids) if uuid.startswith(entry)]
        if len(matches) != 1:
            raise ConfigError(f"{VISIBLE}: {entry} names {len(matches)} GPUs; give a UUID of nvidia-smi -L")
        indices.append(matches[0])
    return tuple(indices)


def _uuids(module: Any | None) -> list[str]:
    nvml = Nvml.load(module)
    handles = (
        nvml.call("nvmlDeviceGetHandleByIndex", index) for index in range(nvml.call("nvmlDeviceGetCount"))
    )
    return [str(nvml.call("nvmlDeviceGetUUID", handle)) for handle in handles]
