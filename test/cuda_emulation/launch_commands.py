"""Server commands that are to run on a GPU host: of the open checks, their sweeps, the e2e fixtures."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from sglang_layered_lab.bench.sweep_spec import read_sweep
from workers import HERE, PROJECT, environment

TODO = PROJECT / "results" / "h200" / "TODO.md"
MODELS = PROJECT / "scripts" / "gpu" / "models"
DEFAULT_MODEL = MODELS / "qwen3-30b-a3b"
Command = list[str]


def default_launch() -> Command:
    """What somebody types first."""
    return ["--model-path", str(DEFAULT_MODEL), "--load-format", "dummy", "--prefill-mode", "layered"]


def todo_commands() -> dict[str, Command]:
    """Every server that the list starts by its flags, by launch command or by sweep."""
    text = TODO.read_text()
    quoted = re.findall(r"`([^`]+)`", text)
    found = {f"TODO: {command}": _launched(command) for command in quoted if "launch_server" in command}
    for path in sorted(_sweeps(quoted)):
        found |= {f"{path.name}: {arm}": flags for arm, flags in sweep_commands(path).items()}
    return found


def sweep_commands(path: Path) -> dict[str, Command]:
    """The servers of a sweep, each by the first arm that it serves; none of a model that is not here."""
    found: dict[tuple[str, ...], str] = {}
    for cell in read_sweep(path).cells:
        server = cell.spec.server
        if (PROJECT / server.model / "config.json").exists():
            found.setdefault(("--model-path", str(PROJECT / server.model), *server.flags), cell.arm.name)
    return {name: list(command) for command, name in found.items()}


def fixture_commands(driver: Path) -> dict[str, Command]:
    """The servers of the tests, as a host with a CUDA driver imports their flags and makes their models."""
    command = [sys.executable, str(HERE / "fixture_flags.py")]
    paths = {"env": environment(driver), "cwd": PROJECT}
    done = subprocess.run(command, capture_output=True, text=True, check=True, **paths)
    commands: dict[str, Command] = json.loads(done.stdout)
    return commands


def _launched(command: str) -> Command:
    words = shlex.split(command)
    flags = words[next(index for index, word in enumerate(words) if "launch_server" in word) + 1 :]
    return [str(DEFAULT_MODEL) if word == "MODEL" else word for word in flags]


def _sweeps(quoted: list[str]) -> Iterator[Path]:
    """Sweeps that are named, by their path or by their name alone beside one with a path."""
    folder, seen = PROJECT, set()
    for name in re.findall(r"[\w./-]+\.toml", " ".join(quoted)):
        path = PROJECT / name if "/" in name else folder / name
        folder = path.parent
        if path.exists() and path not in seen:
            seen.add(path)
            yield path
