"""The stages `smoke`, `kernels`, `step` and `serve`. Each adds rows to its record."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sglang_layered.errors import GpuHostError
from sglang_layered_lab.gpu.budget import Budget
from sglang_layered_lab.gpu.client import draw_prompt, generate, server_mode
from sglang_layered_lab.gpu.duel import points_of, run_arms
from sglang_layered_lab.gpu.models import check_routers, environment_of, model_of
from sglang_layered_lab.gpu.profiles import Arm, Profile, layered_arm, serve_arms, step_arms
from sglang_layered_lab.gpu.records import StageRecord
from sglang_layered_lab.serving import ServerProcess

SMOKE_TOKENS = 8
OUTPUT_LINES = 15


@dataclass(frozen=True, slots=True)
class Job:
    """What a stage gets: where rows and logs go, what to run on, how long, and which arms (empty: all)."""

    record: StageRecord
    profile: Profile
    folder: Path  # logs, events, models
    budget: Budget
    only: tuple[str, ...] = ()

    def choose(self, arms: list[Arm]) -> list[Arm]:
        """The arms asked for."""
        unknown = set(self.only) - {arm.name for arm in arms}
        if unknown:
            names = ", ".join(arm.name for arm in arms)
            raise GpuHostError(f"--only {sorted(unknown)[0]}: choose from {names}")
        return [arm for arm in arms if not self.only or arm.name in self.only]


Stage = Callable[[Job], None]


def smoke(job: Job) -> None:
    """Stock and layered server up, one prompt each."""
    for arm in job.choose([Arm("stock"), layered_arm(job.profile, "fused")]):
        if not job.record.has(arm.name):
            job.budget.need(min(job.profile.start_s, job.budget.total_s) / 4)
            _smoke_arm(job, arm)


def _smoke_arm(job: Job, arm: Arm) -> None:
    began_s = time.monotonic()
    flags = (*job.profile.common_flags, *arm.flags)
    log = job.folder / f"smoke-{arm.name}.log"
    model, left_s = model_of(job.profile, job.folder), job.budget.left_s
    env = environment_of(model)
    with ServerProcess(model, flags, log_path=log, env=env, ready_timeout_s=left_s) as server:
        check_routers(model, log)
        start_s = time.monotonic() - began_s
        mode = server_mode(server.base_url)
        prompt = draw_prompt(random.Random(0), 64, job.profile.vocab_size)
        tokens = generate(server.base_url, prompt, SMOKE_TOKENS, job.budget.left_s)
    wanted = "layered" if arm.is_layered else "chunked"
    if mode != wanted:
        raise GpuHostError(f"{arm.name}: /server_info says mode {mode}, not {wanted}")
    if len(tokens) != SMOKE_TOKENS:
        raise GpuHostError(f"{arm.name}: {len(tokens)} of {SMOKE_TOKENS} tokens came")
    job.record.add(
        {"key": arm.name, "mode": mode, "tokens": tokens, "start_s": round(start_s, 1), "flags": list(flags)}
    )


def kernels(job: Job) -> None:
    """`sglang-layered bench kernels`, by its command line; its JSON goes into the record."""
    out = job.folder / "kernels-bench.json"
    command = [sys.executable, "-m", "sglang_layered", "bench", "kernels"]
    command += ["--device", job.profile.device, "--out", str(out)]
    output = run_command(command, job.folder / "kernels.log", job.budget)
    if not out.exists():
        raise GpuHostError(f"{' '.join(command[2:])} wrote no {out.name}; it printed\n{output}")
    job.record.add({"key": "bench", "result": json.loads(out.read_text()), "output": output})


def run_command(command: list[str], log: Path, budget: Budget, *, accept: tuple[int, ...] = (0,)) -> str:
    """Run a command with its output in `log`; return the last lines, or raise on a bad exit status."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        try:
            status = process.wait(timeout=max(budget.left_s, 1))
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-OUTPUT_LINES:])
    if status not in accept:
        raise GpuHostError(f"{' '.join(command)} ended with status {status}; {log} ends with\n{tail}")
    return tail


def step(job: Job) -> None:
    """Step times: decode rows x prompt x groups x strategy, beside SGLang's own."""
    profile = job.profile
    arms = job.choose(step_arms(profile))
    points = {
        arm.name: points_of(arm, profile.decode_rows, profile.prompt_tokens, profile.num_groups)
        for arm in arms
    }
    run_arms(job.record, profile, arms, points, job.folder / "step", job.budget)


def serve(job: Job) -> None:
    """A short duel of servers as they come: time to first token, and gaps of the running streams."""
    profile = job.profile
    arms = job.choose(serve_arms(profile))
    points = {
        arm.name: points_of(arm, profile.serve_rows, (profile.serve_prompt_tokens,), ()) for arm in arms
    }
    run_arms(job.record, profile, arms, points, job.folder / "serve", job.budget)
