"""Finds an installed SGLang, its version and its recorded hashes, importing neither sglang nor torch."""

import base64
import csv
import re
import subprocess
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from sglang_layered.errors import PatchError

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
        package = _package_in(site)
    elif python is not None:
        package = _package_of(python)
    else:
        spec = find_spec("sglang")
        package = _package_folder(spec.origin if spec else None, "this Python environment")
    return at_package(package)


def at_package(package: Path) -> Site:
    """Return the Site of a known package folder."""
    return Site(package, _read_version(package))


def recorded_sha256(package: Path, path: str) -> str | None:
    """Return the hash that the installer's RECORD gives for a file of the package, None if it gives none."""
    for record in package.parent.glob("sglang-*.dist-info/RECORD"):
        with record.open(newline="") as rows:
            for row in csv.reader(rows):
                if row[0] == f"sglang/{path}" and row[1].startswith("sha256="):
                    return base64.urlsafe_b64decode(row[1].removeprefix("sha256=") + "==").hex()
    return None


def _package_in(site: Path) -> Path:
    for package in (site.absolute() / "sglang", site.absolute()):
        if package.name == "sglang" and (package / "__init__.py").is_file():
            return package
    raise PatchError(f"{site} holds no sglang package; give the site-packages folder that contains sglang/")


def _package_of(python: Path) -> Path:
    try:
        answer = subprocess.run(
            [str(python), "-c", _ASK], capture_output=True, text=True, timeout=60, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise PatchError(
            f"{python} cannot be asked where sglang is ({error}); give a working interpreter"
        ) from error
    found = re.search(r"^sglang at: (.*)$", answer.stdout, re.MULTILINE)
    return _package_folder(found[1] if found else None, str(python))


def _package_folder(origin: str | None, where: str) -> Path:
    init = Path(origin or "")
    if init.name != "__init__.py":
        raise PatchError(f"sglang is not installed in {where}; run `pip install sglang-layered` there")
    return init.parent


def _read_version(package: Path) -> str:
    """Prefer the file that travels with the package; metadata can be left over from another install."""
    found = _first_match(_VERSION_LINE, package / "_version.py")
    metadata = sorted(package.parent.glob("sglang-*.dist-info/METADATA"))
    if found is None and len(metadata) == 1:
        found = _first_match(re.compile(r"^Version: (\S+)$", re.MULTILINE), metadata[0])
    return found or _first_match(_VERSION_LINE, package / "version.py") or "unknown"


def _first_match(pattern: re.Pattern[str], path: Path) -> str | None:
    try:
        match = pattern.search(path.read_text(encoding="utf-8", errors="replace"))
    except FileNotFoundError:
        return None
    return match[1] if match else None
