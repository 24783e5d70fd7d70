"""The stage `profile`: SGLang's profiler on decode steps, then on a prompt's steps beside the streams."""

from __future__ import annotations

import gzip
import json
import random
import time
from pathlib import Path
from typing import Any

import httpx

from sglang_layered.errors import GpuHostError
from sglang_layered.gpu.client import change_settings
from sglang_layered.gpu.duel import ArmServer, Point, StepLog
from sglang_layered.gpu.kernel_parts import trace_times
from sglang_layered.gpu.models import model_of
from sglang_layered.gpu.profile_report import prompt_parts
from sglang_layered.gpu.profiles import Arm, Profile, profile_arms
from sglang_layered.gpu.records import Row
from sglang_layered.gpu.stages import Job
from sglang_layered.serving import ServerProcess

DECODE_STEPS = 10
SPARE_STEPS = 30  # decode steps that may run before the prompt arrives
MORE = 1.1  # times a decode step: the least that a step of the prompt takes
TRACE_WAIT_S = 90.0


def profile(job: Job) -> None:
    """Where the time of a step goes: kernels by part, decode steps and prompt steps; the roofline beside."""
    for arm in job.choose(profile_arms(job.profile)):
        if not job.record.has(arm.name):
            job.budget.need(min(job.profile.start_s, job.budget.total_s) / 2)
            _profile_arm(job, arm)


def _profile_arm(job: Job, arm: Arm) -> None:
    profile, folder = job.profile, job.folder / "profile"
    events = folder / f"{arm.name}.jsonl"
    events.unlink(missing_ok=True)
    listener = ("--layered-listeners", f"jsonl={events}") if arm.is_layered else ()
    with ServerProcess(
        model_of(profile, folder),
        (*profile.common_flags, *arm.flags, *listener),
        log_path=folder / f"{arm.name}.log",
        ready_timeout_s=job.budget.left_s,
    ) as server:
        steps = StepLog(events) if arm.is_layered else None
        running = ArmServer(arm, profile, server.base_url, steps, random.Random(arm.name))
        if arm.is_layered:
            change_settings(server.base_url, layered_num_groups=max(profile.num_groups))
        row = _profiled(job, running, num_prompt_steps(arm, profile))
    job.record.add({"key": arm.name, "arm": arm.name, "is_layered": arm.is_layered} | row)


def num_prompt_steps(arm: Arm, profile: Profile) -> int:
    """Steps of one prompt; in a mixed chunk the decode rows count."""
    if arm.is_layered:
        return max(profile.num_groups)
    size = int(arm.name.removeprefix("mixed")) - profile.decode_rows[0]
    return -(-profile.prompt_tokens[0] // size)


def _profiled(job: Job, running: ArmServer, num_steps: int) -> dict[str, Any]:
    """Warm up, then both traces."""
    profile = job.profile
    point = Point(profile.decode_rows[0], profile.prompt_tokens[0])
    with running.crowd(point.decode_rows, job.budget.left_s) as crowd:
        running.measure(point, crowd, job.budget.left_s)
        decode = _trace(job, running, f"{running.arm.name}-decode", DECODE_STEPS)
        name, count = f"{running.arm.name}-prompt", num_steps + SPARE_STEPS
        running.measure(point, crowd, job.budget.left_s, lambda: _start(job, running, name, count))
        both = _read(job, name)
        generated = max(len(stream.arrivals_s) for stream in crowd.streams)
    row = {
        "decode_rows": point.decode_rows,
        "prompt_tokens": point.prompt_tokens,
        "num_steps": num_steps,
        "context_tokens": profile.context_tokens,
        "repetitions": [{"generated_tokens": generated}],
        "decode": {"num_steps": DECODE_STEPS, **decode},
        "with_prompt": {"num_steps": count, **both},
    }
    check_window(row)
    return row


def check_window(row: Row) -> None:
    """A step of the prompt holds the decodes as well: hardly more than theirs means that it was missed."""
    decode = row["decode"]
    if sum(prompt_parts(row).values()) < MORE * sum(decode["parts_s"].values()) / decode["num_steps"]:
        raise GpuHostError("the profiler's steps ended before the prompt's; run the stage again")


def _trace(job: Job, running: ArmServer, name: str, num_steps: int) -> dict[str, Any]:
    _start(job, running, name, num_steps)
    return _read(job, name)


def _start(job: Job, running: ArmServer, name: str, num_steps: int) -> None:
    """Profile the next steps."""
    folder = _folder(job, name)
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.gz"):
        old.unlink()
    activities = ["CPU", "GPU"] if job.profile.device == "cuda" else ["CPU"]
    order = {"output_dir": str(folder.resolve()), "num_steps": num_steps, "activities": activities}
    reply = httpx.post(f"{running.base_url}/start_profile", json=order, timeout=60, trust_env=False)
    if reply.status_code != 200:
        raise GpuHostError(f"/start_profile answered {reply.status_code}: {reply.text[:300]}")


def _read(job: Job, name: str) -> dict[str, Any]:
    """Wait for the trace and sum it up."""
    end_s = time.monotonic() + min(TRACE_WAIT_S, job.budget.left_s)
    while (events := _events(_folder(job, name))) is None:
        if time.monotonic() > end_s:
            raise GpuHostError(f"SGLang's profiler wrote no trace to {_folder(job, name)}")
        time.sleep(0.5)
    times = trace_times(events, job.profile.device)
    return {"parts_s": dict(times.parts_s), "window_s": times.window_s, "busy_s": times.busy_s}


def _folder(job: Job, name: str) -> Path:
    return job.folder / "profile" / name


def _events(folder: Path) -> list[dict[str, Any]] | None:
    """The trace's events; None while it is not there as a whole."""
    try:
        [path] = folder.glob("*.trace.json.gz")
        found: list[dict[str, Any]] = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
        return found
    except (ValueError, EOFError, OSError):
        return None
