"""What a record says of where it was made: versions, commit, machine."""

import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

from sglang_layered import __version__
from sglang_layered.errors import LabError
from sglang_layered.upstream.cpu_kernels import cuda_driver_available

VERSIONS_OF = """
import json, platform, sys
from importlib.metadata import PackageNotFoundError, version
found = {"python": platform.python_version()}
for name in sys.argv[1:]:
    try:
        found[name] = version(name)
    except PackageNotFoundError:
        continue
print(json.dumps(found))
"""
VERSIONED = ("sglang", "torch", "sglang-layered", "openai", "transformers")


def installed_versions(*more: str, python: str = sys.executable) -> dict[str, str]:
    """Versions of the packages that matter, and of `more`; one that is not installed is left out.

    `python` is the interpreter of the environment that is meant.

    Raises:
        LabError: it does not run.
    """
    said = _output_of(python, "-c", VERSIONS_OF, *VERSIONED, *more)
    if not said:
        raise LabError(f"{python} does not run; give the python of an environment")
    return dict(json.loads(said))


def current_commit() -> str | None:
    """Commit of this code, `-dirty` with local changes: of a checkout in full, else as the version names it.

    A wheel can lie in an environment that another project keeps in its own checkout, so git is asked whether
    this file is one of its.
    """
    git = ("git", "-C", str(Path(__file__).parent))
    if _output_of(*git, "ls-files", Path(__file__).name):
        return _output_of(*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*") or None
    named = re.search(r"\+g([0-9a-f]+)(\.d\d+)?$", __version__)
    return named and f"{named[1]}{'-dirty' if named[2] else ''}"


def this_machine() -> dict[str, Any]:
    """Processor, cores, memory and GPU of this machine."""
    names = [line.split(":", 1)[1].strip() for line in _cpu_lines() if line.startswith("model name")]
    gpus = (
        _output_of("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
        if cuda_driver_available()
        else ""
    )
    return {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": gpus.splitlines(),
        "system": platform.platform(),
    }


def _cpu_lines() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def _output_of(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
