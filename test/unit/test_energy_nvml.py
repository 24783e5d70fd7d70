"""GPUs through a stand-in for pynvml, with the real module's error classes."""

from __future__ import annotations

import sys

import pynvml
import pytest

from sglang_layered.energy.find import find_sources
from sglang_layered.energy.meter import EnergyMeter
from sglang_layered.energy.nvml import find_gpus, nvml_indices
from sglang_layered.energy.sources import CounterSample, EnergySource, PowerSample
from sglang_layered.errors import ConfigError, EnergyError

UUIDS = ("GPU-aaaa-1", "GPU-aaab-2", "GPU-bbbb-3")


class FakeGpu:
    def __init__(self, uuid: str) -> None:
        self.uuid = uuid
        self.energy_mj: int | None = 1000
        self.power_mw: int | None = 90_000
        self.fault: int | None = None


class FakeNvml:
    """Counts its users as NVML does; handles of an earlier start are not valid."""

    NVMLError = pynvml.NVMLError

    def __init__(self, num_gpus: int = 2) -> None:
        self.gpus = [FakeGpu(uuid) for uuid in UUIDS[:num_gpus]]
        self.init_fault: int | None = None
        self.num_users = 0
        self.num_starts = 0

    def __getattr__(self, name: str) -> int:
        if not name.startswith("NVML_ERROR_"):
            raise AttributeError(name)
        return getattr(pynvml, name)

    def nvmlInit(self) -> None:
        if self.init_fault is not None:
            raise pynvml.NVMLError(self.init_fault)
        self.num_users += 1
        self.num_starts += 1

    def nvmlShutdown(self) -> None:
        self._check()
        self.num_users -= 1

    def nvmlDeviceGetCount(self) -> int:
        self._check()
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> tuple[int, FakeGpu]:
        self._check()
        if not 0 <= index < len(self.gpus):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        return self.num_starts, self.gpus[index]

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> tuple[int, FakeGpu]:
        self._check()
        for gpu in self.gpus:
            if gpu.uuid == uuid:
                return self.num_starts, gpu
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)

    def nvmlDeviceGetUUID(self, handle: tuple[int, FakeGpu]) -> str:
        return self._gpu(handle).uuid

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: tuple[int, FakeGpu]) -> int:
        return self._measured(handle, "energy_mj")

    def nvmlDeviceGetPowerUsage(self, handle: tuple[int, FakeGpu]) -> int:
        return self._measured(handle, "power_mw")

    def _measured(self, handle: tuple[int, FakeGpu], name: str) -> int:
        value = getattr(self._gpu(handle), name)
        if value is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return value

    def _gpu(self, handle: tuple[int, FakeGpu]) -> FakeGpu:
        self._check()
        start, gpu = handle
        if start != self.num_starts:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        if gpu.fault is not None:
            raise pynvml.NVMLError(gpu.fault)
        return gpu

    def _check(self) -> None:
        if self.num_users == 0:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_UNINITIALIZED)


def labels(sources: tuple[EnergySource, ...]) -> list[tuple[str, str]]:
    return [(source.device, source.source) for source in sources]


def test_the_stand_in_has_no_function_that_pynvml_lacks() -> None:
    names = [name for name in vars(FakeNvml) if name.startswith("nvml")]
    assert names
    assert all(callable(getattr(pynvml, name)) for name in names)


def test_this_machine_has_gpus_or_says_why_not() -> None:
    found = find_gpus(None)
    assert found.sources or found.missing


def test_all_gpus_by_their_energy_counters() -> None:
    found = find_gpus(None, FakeNvml())
    assert labels(found.sources) == [("gpu0", "nvml-energy"), ("gpu1", "nvml-energy")]
    assert found.sources[0].read() == CounterSample(1_000_000)
    assert found.missing == ()


def test_only_the_gpus_that_were_named_each_once() -> None:
    assert labels(find_gpus([1, 1], FakeNvml()).sources) == [("gpu1", "nvml-energy")]


def test_no_gpu_wanted_is_no_gpu_missing(tmp_path) -> None:
    found = find_sources((), tmp_path, environ={}, pynvml=FakeNvml())
    assert found.sources == ()
    assert not any("GPU" in reason for reason in found.missing)


def test_a_gpu_without_a_counter_gives_its_power() -> None:
    nvml = FakeNvml(1)
    nvml.gpus[0].energy_mj = None
    found = find_gpus(None, nvml)
    assert labels(found.sources) == [("gpu0", "nvml-power")]
    assert found.sources[0].read() == PowerSample(90.0)


def test_power_is_integrated_with_its_error() -> None:
    nvml, now = FakeNvml(1), [0.0]
    nvml.gpus[0].energy_mj = None
    meter = EnergyMeter(find_gpus(None, nvml).sources, clock=lambda: now[0])
    for at_s, power_mw in ((0.0, 100_000), (0.5, 300_000), (1.0, 300_000)):
        now[0], nvml.gpus[0].power_mw = at_s, power_mw
        meter.sample()
    (gpu,) = meter.reading().devices
    assert gpu.joules == pytest.approx(250.0)
    assert gpu.error_j == pytest.approx(50.0, abs=1e-5)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, "install the NVIDIA driver"),
        (pynvml.NVML_ERROR_NO_PERMISSION, "let this user open /dev/nvidiactl"),
        (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, "load the NVIDIA driver"),
        (pynvml.NVML_ERROR_UNKNOWN, "see whether nvidia-smi answers"),
    ],
)
def test_nvml_that_does_not_start_says_why(code: int, reason: str) -> None:
    nvml = FakeNvml()
    nvml.init_fault = code
    (line,) = find_gpus(None, nvml).missing
    assert str(pynvml.NVMLError(code)) in line
    assert reason in line
    assert "\n" not in line


def test_no_pynvml_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    (line,) = find_gpus(None).missing
    assert line.endswith("install nvidia-ml-py")


def test_one_gpu_that_cannot_be_read_leaves_the_others() -> None:
    nvml = FakeNvml(3)
    nvml.gpus[1].fault = pynvml.NVML_ERROR_GPU_IS_LOST
    nvml.gpus[2].energy_mj = nvml.gpus[2].power_mw = None
    found = find_gpus([0, 1, 2, 7], nvml)
    assert labels(found.sources) == [("gpu0", "nvml-energy")]
    lost, unsupported, unknown = found.missing
    assert lost.startswith("gpu1: ") and "reset the GPU" in lost
    assert unsupported.startswith("gpu2: ") and "neither an energy counter nor its power" in unsupported
    assert unknown.startswith("gpu7: ") and "nvidia-smi -L" in unknown
    found.sources[0].read()


def test_a_machine_without_gpus_says_so() -> None:
    assert "NVML sees none" in find_gpus(None, FakeNvml(0)).missing[0]


def test_a_gpu_is_lost_and_comes_back_with_another_index() -> None:
    nvml, now = FakeNvml(2), [0.0]
    meter = EnergyMeter(find_gpus(None, nvml).sources, clock=lambda: now[0])

    def run(num_samples: int) -> None:
        for _ in range(num_samples):
            now[0] += 0.1
            for gpu in nvml.gpus:
                gpu.energy_mj += 10_000 if gpu.uuid == UUIDS[0] else 20_000
            meter.sample()

    run(10)
    nvml.gpus[0].fault = pynvml.NVML_ERROR_GPU_IS_LOST
    run(100)
    first, second = meter.reading().devices
    assert first.lost is not None and first.lost.why.startswith("NVML: GPU is lost; ")
    assert first.joules == pytest.approx(90.0)
    assert second.lost is None and second.joules == pytest.approx(2180.0), (
        "each restart of NVML costs it nothing"
    )
    nvml.gpus[0].fault = None
    nvml.gpus.reverse()
    run(60)
    first, second = meter.reading().devices
    assert first.lost is None
    assert first.anomalies.num_gaps == 1
    assert second.anomalies.num_failed_reads == 0
    assert 1600 < first.joules <= 1690.0, "what the counter gained meanwhile is counted"


def test_the_driver_is_reloaded_under_the_meter() -> None:
    nvml, now = FakeNvml(1), [0.0]
    meter = EnergyMeter(find_gpus(None, nvml).sources, clock=lambda: now[0])
    nvml.gpus[0].energy_mj = 500_000
    meter.sample()
    nvml.num_users, nvml.init_fault = 0, pynvml.NVML_ERROR_DRIVER_NOT_LOADED
    now[0] = 0.1
    meter.sample()
    nvml.init_fault, nvml.gpus[0].energy_mj = None, 0
    for step in range(1, 4):
        now[0] = 0.1 + step / 10
        nvml.gpus[0].energy_mj = step * 7000
        meter.sample()
    (gpu,) = meter.reading().devices
    assert gpu.joules == pytest.approx(14.0), "7 J since the reload cannot be told from those lost before it"
    assert gpu.anomalies.num_counter_resets == 1
    assert gpu.anomalies.num_failed_reads == 1


@pytest.mark.parametrize(
    ("visible", "cuda_ids", "indices"),
    [
        (None, None, None),
        (None, (1, 0), (1, 0)),
        ("2,0", None, (2, 0)),
        ("2,0", (1,), (0,)),
        ("0,-1,1", None, (0,)),
        ("", None, ()),
        (" 1 , 2 ", (0, 1), (1, 2)),
        ("GPU-bbbb-3,GPU-aaaa", (0, 1), (2, 0)),
        ("GPU-bbbb,1", None, (2, 1)),
    ],
)
def test_cuda_numbers_become_nvml_indices(
    visible: str | None, cuda_ids: tuple[int, ...] | None, indices: tuple[int, ...] | None
) -> None:
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert nvml_indices(cuda_ids, environ, FakeNvml(3)) == indices


@pytest.mark.parametrize(
    ("visible", "cuda_ids", "message"),
    [
        ("0", (1,), "shows 1 GPUs, not device 1"),
        ("GPU-aaa", None, "names 2 GPUs"),
        ("GPU-cccc", None, "names 0 GPUs"),
        ("MIG-1234", None, "no energy of MIG-1234"),
    ],
)
def test_what_names_no_gpu_is_refused(visible: str, cuda_ids: tuple[int, ...] | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        nvml_indices(cuda_ids, {"CUDA_VISIBLE_DEVICES": visible}, FakeNvml(3))


def test_uuids_need_nvml() -> None:
    nvml = FakeNvml()
    nvml.init_fault = pynvml.NVML_ERROR_LIBRARY_NOT_FOUND
    with pytest.raises(EnergyError, match="install the NVIDIA driver"):
        nvml_indices(None, {"CUDA_VISIBLE_DEVICES": "GPU-aaaa"}, nvml)
