"""The stage `profile`: SGLang's profiler on a prompt's steps beside streams, and decode steps around them."""

from __future__ import annotations

import gzip
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx

from sglang_layered.errors import GpuHostError
from sglang_layered_lab.gpu.client import change_settings
from sglang_layered_lab.gpu.duel import ArmServer, Point, serving
from sglang_layered_lab.gpu.kernel_parts import step_times
from sglang_layered_lab.gpu.profiles import Arm, Profile, profile_arms
from sglang_layered_lab.gpu.stages import Job

SPARE_STEPS = 30  # decode steps before the prompt arrives, and after it
TRACE_WAIT_S = 90.0


def profile(job: Job) -> None:
    """Where the time of a step goes: kernels by part, decode steps and prompt steps; the roofline beside."""
    for arm in job.choose(profile_arms(job.profile)):
        if not job.record.has(arm.name):
            job.budget.need(min(job.profile.start_s, job.budget.total_s) / 2)
            _profile_arm(job, arm)


def _profile_arm(job: Job, arm: Arm) -> None:
    profile = job.profile
    with serving(profile, arm, job.folder / "profile", job.budget.left_s) as (server, running):
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
    """Warm up, then the trace."""
    profile, name = job.profile, running.arm.name
    point = Point(profile.decode_rows[0], profile.prompt_tokens[0])
    with running.crowd(point.decode_rows, job.budget.left_s) as crowd:
        running.measure(point, crowd, job.budget.left_s)
        running.measure(
            point, crowd, job.budget.left_s, lambda: _start(job, running, num_steps + SPARE_STEPS)
        )
        decode, prompt = step_times(_trace(job, name), profile.device)
        generated = max(len(stream.arrivals_s) for stream in crowd.streams)
    if prompt.num_steps != num_steps or not decode.num_steps:
        raise GpuHostError(
            f"{name}: of the prompt's {num_steps} steps the trace has {prompt.num_steps}, of decode steps"
            f" {decode.num_steps}; run the stage again"
        )
    return {
        "decode_rows": point.decode_rows,
        "prompt_tokens": point.prompt_tokens,
        "num_steps": num_steps,
        "context_tokens": profile.context_tokens,
        "repetitions": [{"generated_tokens": generated}],
        "decode": asdict(decode),
        "prompt": asdict(prompt),
    }


def _start(job: Job, running: ArmServer, num_steps: int) -> None:
    """Profile the next steps."""
    folder = _folder(job, running.arm.name)
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.gz"):
        old.unlink()
    activities = ["CPU", "GPU"] if job.profile.device == "cuda" else ["CPU"]
    order = {"output_dir": str(folder.resolve()), "num_steps": num_steps, "activities": activities}
    reply = httpx.post(f"{running.base_url}/start_profile", json=order, timeout=60, trust_env=False)
    if reply.status_code != 200:
        raise GpuHostError(f"/start_profile answered {reply.status_code}: {reply.text[:300]}")


def _trace(job: Job, name: str) -> list[dict[str, Any]]:
    """The trace's events, once it is there."""
    end_s = time.monotonic() + min(TRACE_WAIT_S, job.budget.left_s)
    while (events := _events(_folder(job, name))) is None:
        if time.monotonic() > end_s:
            raise GpuHostError(f"SGLang's profiler wrote no trace to {_folder(job, name)}")
        time.sleep(0.5)
    return events


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
