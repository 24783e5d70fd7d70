"""The record of a quickstart: what was asked, where it ran, and every raw arrival time. JSON in and out.

Figures in the file's `metrics` are for the reader's eye: whoever reads a record back computes them again from
the raw times.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

from sglang_layered.cpu_kernels import cuda_driver_available
from sglang_layered_lab.bench.trace import Arrival
from sglang_layered_lab.quickstart.metrics import Repetition, Spread, Stream, summarise
from sglang_layered_lab.quickstart.scenario import Scenario

VERSIONED = ("sglang", "torch", "sglang-layered", "openai", "transformers")


@dataclass(frozen=True, slots=True)
class ModeRun:
    """One server's part of a quickstart."""

    mode: str
    command: tuple[str, ...]
    startup_s: float  # from the process's start until it answered
    peak_memory_bytes: int  # greatest sampled memory of the server's process tree
    repetitions: tuple[Repetition, ...]

    def summary(self) -> dict[str, Spread]:
        """Each figure's spread over the repetitions."""
        return summarise(self.repetitions)


@dataclass(frozen=True, slots=True)
class Record:
    """Everything a quickstart leaves behind."""

    scenario: Scenario
    model_path: str
    versions: Mapping[str, str]
    commit: str | None  # of this repository; None outside a git checkout
    machine: Mapping[str, Any]
    runs: tuple[ModeRun, ...]

    def run_of(self, mode: str) -> ModeRun | None:
        """Find the run of one mode, if it was asked for."""
        return next((run for run in self.runs if run.mode == mode), None)

    def write(self, path: Path) -> None:
        """Write the record as JSON."""
        document = {
            "scenario": asdict(self.scenario),
            "model_path": self.model_path,
            "versions": dict(self.versions),
            "commit": self.commit,
            "machine": dict(self.machine),
            "units": "times in seconds since the long prompt was sent; [time, tokens of the stream so far]",
            "runs": [_run_to_json(run) for run in self.runs],
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document, indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> Record:
        """Read a record that `write` wrote."""
        document = json.loads(path.read_text())
        return cls(
            scenario=Scenario(**document["scenario"]),
            model_path=document["model_path"],
            versions=document["versions"],
            commit=document["commit"],
            machine=document["machine"],
            runs=tuple(_run_from_json(run) for run in document["runs"]),
        )


def _stream_to_json(stream: Stream) -> list[list[float]]:
    return [[round(arrival.time_s, 6), arrival.num_tokens] for arrival in stream]


def _stream_from_json(rows: list[list[float]]) -> Stream:
    return tuple(Arrival(float(time_s), int(num_tokens)) for time_s, num_tokens in rows)


def _run_to_json(run: ModeRun) -> dict[str, Any]:
    return {
        "mode": run.mode,
        "command": list(run.command),
        "startup_s": round(run.startup_s, 3),
        "peak_memory_bytes": run.peak_memory_bytes,
        "metrics": {name: asdict(spread) for name, spread in run.summary().items()},
        "repetitions": [
            {"long": _stream_to_json(each.long), "running": [_stream_to_json(one) for one in each.running]}
            for each in run.repetitions
        ],
    }


def _run_from_json(document: dict[str, Any]) -> ModeRun:
    return ModeRun(
        mode=document["mode"],
        command=tuple(document["command"]),
        startup_s=document["startup_s"],
        peak_memory_bytes=document["peak_memory_bytes"],
        repetitions=tuple(
            Repetition(_stream_from_json(each["long"]), tuple(map(_stream_from_json, each["running"])))
            for each in document["repetitions"]
        ),
    )


def installed_versions(*more: str) -> dict[str, str]:
    """Versions of the packages that matter, and of `more`; one that is not installed is left out."""
    found = {"python": platform.python_version()}
    for name in (*VERSIONED, *more):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def current_commit() -> str | None:
    """Commit of the checkout this file lies in, with `-dirty` for local changes."""
    described = _output_of(
        "git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"
    )
    return described or None


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
