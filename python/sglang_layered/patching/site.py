"""An installed SGLang: its folder, its version, and replacing its files; imports neither sglang nor torch."""

import fcntl
import hashlib
import os
import re
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from sglang_layered.errors import PatchError

TEMP_PREFIX = ".sglang-layered-"
_ASK = """
import sys
from importlib.util import find_spec
sys.path = [entry for entry in sys.path if entry]
spec = find_spec("sglang")
print("sglang at:", spec.origin if spec else None)
"""
_VERSION_LINE = re.compile(r"^__version__\b[^'\"\n]*=\s*['\"]([^'\"]+)['\"]", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Site:
    """An installed SGLang: the folder of its package and its version, `unknown` when nothing names one."""

    package: Path
    version: str


def locate(*, python: Path | None = None, site: Path | None = None) -> Site:
    """Find SGLang in `site`, in the environment of the interpreter `python`, or in this interpreter's."""
    if python is not None and site is not None:
        raise PatchError("give --python or --site, not both")
    if site is not None:
        return at_package(_package_in(site))
    if python is not None:
        origin, where = _origin_in(python), str(python)
    else:
        spec = find_spec("sglang")
        origin, where = spec.origin if spec else None, "this Python environment"
    init = Path(origin or "")
    if init.name != "__init__.py":
        raise PatchError(f"sglang is not installed in {where}; run `pip install sglang-layered` there")
    return at_package(init.parent)


def at_package(package: Path) -> Site:
    """Return the Site of a known package folder; metadata beside it can be left over from another install."""
    file = package / "_version.py"
    version = _VERSION_LINE.search(file.read_text("utf-8", "replace") if file.is_file() else "")
    return Site(package, version[1] if version else "unknown")


def sha256(data: bytes) -> str:
    """Return the hexadecimal SHA-256 of `data`."""
    return hashlib.sha256(data).hexdigest()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep two runs of the tool from changing `folder` at once; the lock ends with the process."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def replace_file(path: Path, data: bytes) -> None:
    """Put a new file with `data` in the place of the existing `path`, keeping its mode bits.

    The old file is never written to: installers hard-link or symlink files from a shared cache, and the other
    names of the old file must keep their bytes. A kill at any moment leaves the old or the new file at
    `path`, and at worst a temporary file beside it, which `remove_leftovers` finds by its prefix.
    """
    mode = stat.S_IMODE(path.stat().st_mode)
    handle, temp = tempfile.mkstemp(prefix=TEMP_PREFIX, dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fchmod(stream.fileno(), mode)
            os.fsync(stream.fileno())
        os.replace(temp, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temp)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files that a killed `replace_file` left in `folder`."""
    for leftover in folder.glob(f"{TEMP_PREFIX}*"):
        leftover.unlink(missing_ok=True)


def _package_in(site: Path) -> Path:
    for package in (site.absolute() / "sglang", site.absolute()):
        if package.name == "sglang" and (package / "__init__.py").is_file():
            return package
    raise PatchError(f"{site} holds no sglang package; give the site-packages folder that contains sglang/")


def _origin_in(python: Path) -> str | None:
    command = [str(python), "-c", _ASK]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise PatchError(
            f"{python} cannot be asked where sglang is ({error}); give a working interpreter"
        ) from error
    found = re.search(r"^sglang at: (.*)$", answer.stdout, re.MULTILINE)
    return found[1] if found else None
