"""An offline bundle as data: what goes in, how large, into which archive. Then its writing.

A bundle is bundle-01.tar, bundle-02.tar, ..., each of at most so many bytes, with install.sh and SHA256SUMS
beside them. Knows files and archives; where wheels come from stands in `wheels`.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sglang_layered.errors import LabError
from wheels import STUBS, Wheel, download, rewrite_wheel

HEADER_BYTES = 2048  # a tar header, and the padding after the data
END_BYTES = 10240  # the end of a tar file, at most
PROJECT_PLACE = "project"  # the checkout, under the target folder of the host


@dataclass(frozen=True, slots=True)
class Member:
    """One file of the bundle; `is_estimate` when it has not been made yet."""

    name: str
    num_bytes: int
    path: Path | None = None
    is_estimate: bool = False


@dataclass(frozen=True, slots=True)
class BundleSpec:
    """What to pack. `extras` are (folder, place under the target folder of the host)."""

    repository: Path
    wheels: tuple[Wheel, ...]
    extras: tuple[tuple[Path, str], ...]
    python_version: str
    max_bytes: int

    def __post_init__(self) -> None:
        for folder, place in self.extras:
            if not folder.is_dir():
                raise LabError(f"--extra {folder}:{place}: {folder} is not a folder")
            if not place or Path(place).is_absolute() or ".." in Path(place).parts:
                raise LabError(f"--extra {folder}:{place}: the place must lie inside the target folder")


def parse_extra(text: str) -> tuple[Path, str]:
    """Read FOLDER:PLACE."""
    folder, colon, place = text.rpartition(":")
    if not colon or not folder:
        raise LabError(f"--extra {text}: give FOLDER:PLACE")
    return Path(folder), place


def dry_run(spec: BundleSpec, wheel_folder: Path) -> list[Member]:
    """List what would be packed, from what lies here; nothing is fetched or written."""
    members = []
    for wheel in spec.wheels:
        found = wheel.find(wheel_folder)
        known = wheel.packed_bytes or (found.stat().st_size if found else 0)
        members.append(Member(f"wheels/{wheel.requirement}", known, found, is_estimate=True))
    tree_bytes = sum((spec.repository / name).stat().st_size for name in tracked_files(spec.repository))
    members.append(Member("wheels/sglang-layered", tree_bytes // 4, is_estimate=True))
    members.append(Member(f"trees/{PROJECT_PLACE}.tar.xz", tree_bytes // 4, is_estimate=True))
    for folder, place in spec.extras:
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        members.append(Member(f"trees/{_tree_name(place)}.tar.xz", size, folder, is_estimate=True))
    return [*members, *(Member(f"stubs/{name}", len(text)) for name, text in STUBS.items())]


def make_members(spec: BundleSpec, wheel_folder: Path, work: Path) -> list[Member]:
    """Fetch, cut and pack every member into the folder `work`."""
    wheel_folder.mkdir(parents=True, exist_ok=True)
    missing = [wheel for wheel in spec.wheels if wheel.find(wheel_folder) is None]
    if missing:
        download(missing, wheel_folder, spec.python_version)
    (work / "wheels").mkdir(parents=True, exist_ok=True)
    wanted = []
    for wheel in spec.wheels:
        found = wheel.find(wheel_folder)
        if found is None:
            raise LabError(f"no wheel for {wheel.requirement} in {wheel_folder}")
        wanted.append(work / "wheels" / found.name)
        _pack_wheel(found, wanted[-1], wheel.drop)
    for old in set((work / "wheels").iterdir()) - set(wanted):  # of an earlier bundle
        old.unlink()
    _pack_project(spec.repository, work)
    for folder, place in spec.extras:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        _pack_tree(work, place, ((path, str(path.relative_to(folder))) for path in files))
    for name, text in STUBS.items():
        (work / "stubs" / name).parent.mkdir(parents=True, exist_ok=True)
        (work / "stubs" / name).write_text(text)
    files = sorted(path for path in work.rglob("*") if path.is_file())
    return [Member(str(path.relative_to(work)), path.stat().st_size, path) for path in files]


def split(members: Iterable[Member], max_bytes: int) -> list[list[Member]]:
    """Spread members over as few archives as first fit, largest first, needs; each of at most `max_bytes`."""
    archives: list[list[Member]] = []
    room: list[int] = []
    for member in sorted(members, key=lambda each: (-each.num_bytes, each.name)):
        needed = member.num_bytes + HEADER_BYTES
        if needed + END_BYTES > max_bytes:
            raise LabError(
                f"{member.name} takes {member.num_bytes / 2**20:.1f} MiB and an archive may have"
                f" {max_bytes / 2**20:g}; raise --max-mib or leave it out"
            )
        index = next((index for index, left in enumerate(room) if needed <= left), len(room))
        if index == len(room):
            room.append(max_bytes - END_BYTES)
            archives.append([])
        room[index] -= needed
        archives[index].append(member)
    return archives


def write_bundle(archives: Sequence[Sequence[Member]], out: Path, install_script: Path) -> list[Path]:
    """Write archives, install.sh and SHA256SUMS; archives of an earlier bundle in `out` are removed."""
    for old in out.glob("bundle-*.tar"):
        old.unlink()
    written = []
    for number, members in enumerate(archives, 1):
        written.append(out / f"bundle-{number:02d}.tar")
        with tarfile.open(written[-1], "w", format=tarfile.GNU_FORMAT) as archive:
            for member in sorted(members, key=lambda each: each.name):
                if member.path is None:
                    raise LabError(f"{member.name} was planned and never made")
                archive.add(member.path, member.name, filter=_anonymous)
    script = out / "install.sh"
    script.write_bytes(install_script.read_bytes())
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in [*written, script]]
    (out / "SHA256SUMS").write_text("".join(lines))
    return written


def tracked_files(repository: Path) -> list[str]:
    """Names of the files that git tracks, but for records of runs elsewhere: the host has no use for them."""
    command = ["git", "-C", str(repository), "ls-files", "-z"]
    listed = subprocess.run(command, capture_output=True, text=True)
    if listed.returncode != 0:
        raise LabError(
            f"{repository}: not a git checkout ({listed.stderr.strip()}); run this in the checkout"
        )
    names = [name for name in listed.stdout.split("\0") if name and (repository / name).is_file()]
    return [name for name in names if not name.startswith("results/") or name.startswith("results/h200/")]


def _pack_wheel(source: Path, target: Path, drop: tuple[str, ...]) -> None:
    if not (
        target.exists() and _names(target) == {name for name in _names(source) if not name.startswith(drop)}
    ):
        partial = target.with_suffix(".partial")
        rewrite_wheel(source, partial, drop, zipfile.ZIP_LZMA)
        partial.rename(target)


def _names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {info.filename for info in archive.infolist() if not info.is_dir()}


def _pack_project(repository: Path, work: Path) -> None:
    names = tracked_files(repository)
    _pack_tree(work, PROJECT_PLACE, ((repository / name, name) for name in names))
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(work / "trees" / f"{PROJECT_PLACE}.tar.xz") as tree:
            tree.extractall(folder)  # what git has packed; Python 3.11.2, Debian 12's, knows no filter
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
        command += ["--wheel-dir", str(work / "wheels"), str(Path(folder) / PROJECT_PLACE)]
        if subprocess.run(command, env={**os.environ, **_named_version(repository)}).returncode != 0:
            raise LabError("pip could not build this project's wheel; its message stands above")


def _named_version(repository: Path) -> dict[str, str]:
    """What tells the build of a tree without git its version; records on the host then name the commit."""
    asked = [sys.executable, "-m", "setuptools_scm", "--root", str(repository)]
    told = subprocess.run(asked, capture_output=True, text=True)
    if told.returncode != 0:
        raise LabError(f"setuptools-scm names no version of {repository}: {told.stderr.strip()}")
    return {"SETUPTOOLS_SCM_PRETEND_VERSION_FOR_SGLANG_LAYERED": told.stdout.strip()}


def _pack_tree(work: Path, place: str, files: Iterable[tuple[Path, str]]) -> None:
    (work / "trees").mkdir(parents=True, exist_ok=True)
    with tarfile.open(work / "trees" / f"{_tree_name(place)}.tar.xz", "w:xz") as tree:
        for path, name in files:
            tree.add(path, f"{place}/{name}", recursive=False, filter=_anonymous)


def _tree_name(place: str) -> str:
    return place.strip("/").replace("/", "-")


def _anonymous(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    return info


def as_bytes(members: Sequence[Member]) -> int:
    """Bytes of all members together, without the archives' own."""
    return sum(member.num_bytes for member in members)


def listing(members: Sequence[Member]) -> str:
    """One line a member, largest first; `~` marks an estimate, `?` a size nobody knows yet."""
    lines = []
    for member in sorted(members, key=lambda each: (-each.num_bytes, each.name)):
        mark = "~" if member.is_estimate else " "
        size = f"{mark}{member.num_bytes / 2**20:8.2f}" if member.num_bytes else "        ?"
        lines.append(f"{size} MiB  {member.name}")
    return "\n".join(lines)
