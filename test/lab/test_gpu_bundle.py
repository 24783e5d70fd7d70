"""The offline bundle on fake wheels: what is planned, cut, packed and split; no network."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import make_bundle
from bundle import (
    END_BYTES,
    HEADER_BYTES,
    BundleSpec,
    Member,
    dry_run,
    make_members,
    parse_extra,
    split,
    write_bundle,
)
from sglang_layered.errors import LabError
from wheels import DROP, Wheel, carried_wheels, rewrite_wheel

REPO = Path(__file__).resolve().parents[2]


def fake_wheel(folder: Path, name: str, version: str, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    stem = name.replace("-", "_")
    path = folder / f"{stem}-{version}-py3-none-any.whl"
    info = f"{stem}-{version}.dist-info"
    metadata = {f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode()}
    metadata[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        for place, data in (files | metadata | {f"{info}/RECORD": b"of the whole wheel\n"}).items():
            wheel.writestr(place, data)
    return path


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A small project under git, with one file that git does not track."""
    folder = tmp_path / "checkout"
    (folder / "toy").mkdir(parents=True)
    (folder / "toy" / "__init__.py").write_text("ANSWER = 42\n")
    (folder / "untracked.bin").write_bytes(b"x" * 1000)
    (folder / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        '[project]\nname = "sglang-layered"\nversion = "0"\n[tool.setuptools]\npackages = ["toy"]\n'
    )
    subprocess.run(["git", "init", "-q", str(folder)], check=True)
    subprocess.run(["git", "-C", str(folder), "add", "toy", "pyproject.toml"], check=True)
    return folder


def spec(repository: Path, *wheels: Wheel, extras: tuple = (), max_bytes: int = 10**7) -> BundleSpec:
    return BundleSpec(repository, wheels, extras, "3.12", max_bytes)


def test_table_names_each_wheel_once_with_its_size() -> None:
    wheels = carried_wheels()
    assert len({wheel.name for wheel in wheels}) == len(wheels) > 40
    assert {"sglang", "sglang-kernel", "flashinfer-python", "click", "pytest"} <= {w.name for w in wheels}
    assert all(wheel.packed_bytes > 0 for wheel in wheels)
    assert DROP.keys() <= {wheel.name for wheel in wheels}
    pinned = (REPO / "requirements.lock").read_text().splitlines()
    for name in ("sglang", "sglang-kernel", "flashinfer-python", "apache-tvm-ffi"):
        wheel = next(wheel for wheel in wheels if wheel.name == name)
        assert wheel.requirement in pinned


def test_rewritten_wheel_lacks_what_is_dropped_and_pip_installs_it(tmp_path: Path) -> None:
    files = {"toy/__init__.py": b"ANSWER = 42\n", "toy/big/kernel.so": b"k" * 5000, "toy/bigger.py": b""}
    source = fake_wheel(tmp_path / "in", "toy", "1.0", files)
    (tmp_path / "out").mkdir()
    target = tmp_path / "out" / source.name
    rewrite_wheel(source, target, ("toy/big/",), zipfile.ZIP_LZMA)
    with zipfile.ZipFile(target) as wheel:
        assert "toy/big/kernel.so" not in wheel.namelist()
        assert {"toy/__init__.py", "toy/bigger.py"} <= set(wheel.namelist())
        record = list(csv.reader(io.StringIO(wheel.read("toy-1.0.dist-info/RECORD").decode())))
    digest = base64.urlsafe_b64encode(hashlib.sha256(b"ANSWER = 42\n").digest()).decode().rstrip("=")
    assert ["toy/__init__.py", f"sha256={digest}", "12"] in record
    assert {row[0] for row in record} == set(zipfile.ZipFile(target).namelist())
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
    subprocess.run([*install, "--target", str(tmp_path / "site"), str(target)], check=True)
    assert (tmp_path / "site" / "toy" / "__init__.py").read_text() == "ANSWER = 42\n"
    again = tmp_path / "again.whl"
    rewrite_wheel(source, again, ("toy/big/",), zipfile.ZIP_LZMA)
    assert again.read_bytes() == target.read_bytes()


def test_wheel_without_a_record_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bad.whl", "w") as wheel:
        wheel.writestr("toy.py", "")
    with pytest.raises(LabError, match="RECORD"):
        rewrite_wheel(tmp_path / "bad.whl", tmp_path / "out.whl", (), zipfile.ZIP_DEFLATED)


@given(
    sizes=st.lists(st.integers(0, 900), max_size=40),
    max_bytes=st.integers(900 + HEADER_BYTES + END_BYTES, 40_000),
)
def test_split_keeps_every_member_once_and_every_archive_under_the_limit(
    sizes: list[int], max_bytes: int
) -> None:
    members = [Member(f"m{index}", size) for index, size in enumerate(sizes)]
    archives = split(members, max_bytes)
    assert sorted(each.name for archive in archives for each in archive) == sorted(m.name for m in members)
    for archive in archives:
        assert archive
        assert sum(each.num_bytes + HEADER_BYTES for each in archive) + END_BYTES <= max_bytes


def test_a_member_larger_than_an_archive_is_named() -> None:
    with pytest.raises(LabError, match=r"wheels/huge takes 2.0 MiB.*--max-mib"):
        split([Member("wheels/huge", 2 * 2**20)], 2**20)


def test_bundle_holds_wheels_project_and_extras_within_the_limit(tmp_path: Path, repository: Path) -> None:
    wheels = tmp_path / "wheels"
    noise = hashlib.shake_256(b"noise").digest(60_000)  # does not compress
    fake_wheel(wheels, "one", "1", {"one/__init__.py": b"", "one/data": noise})
    fake_wheel(wheels, "two", "2", {"two/__init__.py": b"", "two/data": noise[::-1]})
    jit = tmp_path / "jit" / "aot"
    jit.mkdir(parents=True)
    (jit / "a.so").write_bytes(b"library")
    extras = ((tmp_path / "jit", "site/data"),)
    plan = spec(repository, Wheel("one", "1"), Wheel("two", "2"), extras=extras, max_bytes=100_000)
    members = make_members(plan, wheels, tmp_path / "work")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "bundle-07.tar").write_text("of an earlier bundle")
    script = tmp_path / "install.sh"
    script.write_text("#!/bin/sh\n")
    written = write_bundle(split(members, plan.max_bytes), tmp_path / "out", script)

    assert sorted(path.name for path in (tmp_path / "out").glob("*.tar")) == [
        "bundle-01.tar",
        "bundle-02.tar",
    ]
    assert all(path.stat().st_size <= 100_000 for path in written)
    subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=tmp_path / "out", check=True)
    unpacked = tmp_path / "unpacked"
    for path in written:
        with tarfile.open(path) as archive:
            archive.extractall(unpacked)
    names = {str(path.relative_to(unpacked)) for path in unpacked.rglob("*") if path.is_file()}
    assert "wheels/sglang_layered-0-py3-none-any.whl" in names
    assert "stubs/IPython/display.py" in names
    with tarfile.open(unpacked / "trees" / "project.tar.xz") as tree:
        assert sorted(tree.getnames()) == ["project/pyproject.toml", "project/toy/__init__.py"]
    with tarfile.open(unpacked / "trees" / "site-data.tar.xz") as tree:
        assert tree.getnames() == ["site/data/aot/a.so"]


def test_dry_run_lists_what_lies_here_and_writes_nothing(tmp_path: Path, repository: Path) -> None:
    wheels = tmp_path / "wheels"
    path = fake_wheel(wheels, "one", "1", {"one.py": b"x" * 999})
    before = sorted(tmp_path.rglob("*"))
    plan = spec(repository, Wheel("one", "1"), Wheel("gone", "3"), Wheel("known", "4", 2048))
    sizes = {member.name: member.num_bytes for member in dry_run(plan, wheels)}
    assert sizes["wheels/one==1"] == path.stat().st_size
    assert sizes["wheels/gone==3"] == 0
    assert sizes["wheels/known==4"] == 2048
    assert {"trees/project.tar.xz", "wheels/sglang-layered"} <= sizes.keys()
    assert sorted(tmp_path.rglob("*")) == before


def test_dry_run_of_the_real_bundle_fits_two_archives_of_48_mib(tmp_path: Path) -> None:
    command = ["--out", str(tmp_path / "out"), "--dry-run", "--repository", str(REPO)]
    result = CliRunner().invoke(make_bundle.main, command)
    assert result.exit_code == 0, result.output
    assert "would be packed into 2 archives" in result.output
    assert "wheels/sglang==0.5.17" in result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("extra", "message"),
    [("nowhere", "give FOLDER:PLACE"), ("/no/such:place", "not a folder"), (".:/abs", "inside the target")],
)
def test_a_bad_extra_is_refused(extra: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(LabError, match=message):
        BundleSpec(tmp_path, (), (parse_extra(extra),), "3.12", 10**6)


def test_a_bad_addition_is_refused_by_the_command(tmp_path: Path) -> None:
    result = CliRunner().invoke(make_bundle.main, ["--out", str(tmp_path), "--add", "torch"])
    assert result.exit_code == 1
    assert "--add torch: give NAME==VERSION" in result.output


def test_install_script_is_a_shell_script_that_refuses_a_folder_without_sums(tmp_path: Path) -> None:
    script = REPO / "scripts" / "gpu" / "install.sh"
    subprocess.run(["sh", "-n", str(script)], check=True)
    got = subprocess.run(
        ["sh", str(script), str(tmp_path), str(tmp_path / "t")], capture_output=True, text=True
    )
    assert got.returncode == 1
    assert "SHA256SUMS" in got.stderr


def test_a_second_bundle_keeps_nothing_of_the_first(
    tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheels, work = tmp_path / "wheels", tmp_path / "work"
    fake_wheel(wheels, "one", "1", {"one/__init__.py": b"", "one/sm100/a.so": b"a"})
    fake_wheel(wheels, "two", "2", {"two.py": b""})
    make_members(spec(repository, Wheel("one", "1"), Wheel("two", "2")), wheels, work)
    monkeypatch.setitem(DROP, "one", ("one/sm100/",))
    members = make_members(spec(repository, Wheel("one", "1")), wheels, work)
    packed = [member.name for member in members if member.name.startswith("wheels/")]
    assert packed == ["wheels/one-1-py3-none-any.whl", "wheels/sglang_layered-0-py3-none-any.whl"]
    with zipfile.ZipFile(work / packed[0]) as wheel:
        assert "one/__init__.py" in wheel.namelist() and "one/sm100/a.so" not in wheel.namelist()
