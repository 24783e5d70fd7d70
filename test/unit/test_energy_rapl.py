"""CPU packages read from folders that look like Linux's powercap."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from sglang_layered.energy.find import find_sources
from sglang_layered.energy.meter import EnergyMeter
from sglang_layered.energy.rapl import find_packages
from sglang_layered.energy.sources import CounterSample
from sglang_layered.errors import EnergyError

WRAP_UJ = 262_143_328_850


def zone(powercap: Path, folder: str, name: str, energy_uj: int | str = 1_000_000) -> Path:
    path = powercap / folder
    path.mkdir(parents=True)
    for file, text in (("name", name), ("energy_uj", energy_uj), ("max_energy_range_uj", WRAP_UJ)):
        (path / file).write_text(f"{text}\n")
    return path


def forbid_energy(path: Path) -> str:
    if path.name == "energy_uj":
        raise PermissionError(errno.EACCES, "Permission denied", str(path))
    return path.read_text()


def test_packages_only(tmp_path: Path) -> None:
    (tmp_path / "intel-rapl").mkdir()
    zone(tmp_path, "intel-rapl:0", "package-0", 5)
    zone(tmp_path, "intel-rapl:1", "package-1")
    zone(tmp_path, "intel-rapl:2", "psys")
    zone(tmp_path, "intel-rapl:0:0", "core")
    zone(tmp_path, "intel-rapl-mmio:0", "package-0")
    found = find_packages(tmp_path)
    assert [source.device for source in found.sources] == ["cpu-package-0", "cpu-package-1"]
    assert {source.source for source in found.sources} == {"rapl"}
    assert found.sources[0].read() == CounterSample(5, WRAP_UJ)
    assert found.missing == ()


def test_the_counter_wraps_under_the_meter(tmp_path: Path) -> None:
    package, now = zone(tmp_path, "intel-rapl:0", "package-0", WRAP_UJ - 3_000_000), [0.0]
    meter = EnergyMeter(find_packages(tmp_path).sources, clock=lambda: now[0])
    meter.sample()
    now[0] = 0.1
    (package / "energy_uj").write_text("2000000\n")
    meter.sample()
    assert meter.reading().devices[0].joules == 5.0


def test_no_permission_says_so_in_one_line(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0")
    found = find_packages(tmp_path, forbid_energy)
    assert found.sources == ()
    assert found.missing == (
        "CPU: RAPL: energy_uj of intel-rapl:0: Permission denied; only root may read it:"
        " chmod a+r energy_uj in that folder, or run as root",
    )


def test_permission_taken_away_mid_run(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0")
    denied = [False]
    (package,) = find_packages(
        tmp_path, lambda path: forbid_energy(path) if denied[0] else path.read_text()
    ).sources
    denied[0] = True
    with pytest.raises(EnergyError, match="only root may read it"):
        package.read()


@pytest.mark.parametrize("folder", ["", "intel-rapl", "absent"])
def test_nothing_there_says_why(tmp_path: Path, folder: str) -> None:
    if folder == "intel-rapl":
        (tmp_path / folder).mkdir()
    found = find_packages(tmp_path / "absent" if folder == "absent" else tmp_path)
    assert found.sources == ()
    (line,) = found.missing
    assert "load intel_rapl_msr" in line and "\n" not in line


def test_a_counter_that_holds_no_number(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", "busy")
    zone(tmp_path, "intel-rapl:1", "package-1")
    found = find_packages(tmp_path)
    assert [source.device for source in found.sources] == ["cpu-package-1"]
    assert "holds 'busy'" in found.missing[0]


def test_both_kinds_are_found_together(tmp_path: Path) -> None:
    from test_energy_nvml import FakeNvml

    zone(tmp_path, "intel-rapl:0", "package-0")
    found = find_sources(None, tmp_path, environ={}, pynvml=FakeNvml(1))
    assert [source.device for source in found.sources] == ["gpu0", "cpu-package-0"]
    assert found.missing == ()
