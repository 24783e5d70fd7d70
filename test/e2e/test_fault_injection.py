"""An exception at every seam, a killed scheduler, a shutdown: all clients hear of it and no process stays."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import pytest
from tiny_models import EXACT

from crowd import crowd, survivors
from servers import forked
from sglang_layered.errors import LabError
from sglang_layered_lab.serving import ServerProcess
from workload import Ask, answers, output_tokens, prompt, read_steps

pytestmark = pytest.mark.server

HERE = Path(__file__).parent
FLAGS = (*EXACT, "--max-total-tokens", "40000")
FLAGS += ("--prefill-mode", "layered", "--layered-group-tokens", "64", "--layered-check-invariants", "full")
MANY = 3000  # outputs; longer than any of these servers lives
ERRORS_WITHIN_S = 60.0  # a client that hears nothing waits for ever; machines are shared and slow
GONE_WITHIN_S = 60.0
Trigger = Callable[[ServerProcess], Awaitable[None]]


async def nothing(_: ServerProcess) -> None:
    """The fault comes by itself while the crowd is served."""


async def _post(server: ServerProcess, path: str, body: dict) -> None:
    async with httpx.AsyncClient(base_url=server.base_url, trust_env=False) as client:
        with suppress(httpx.HTTPError):  # the answer may never come; the crowd tells what happened
            await client.post(path, json=body, timeout=1)


async def pause(server: ServerProcess) -> None:
    await _post(server, "/pause_generation", {"mode": "retract"})


async def change_settings(server: ServerProcess) -> None:
    await _post(server, "/set_internal_state", {"server_args": {"layered_group_tokens": 128}})


FAULTS: dict[str, tuple[str, Trigger]] = {
    "on_pause": ("sglang_layered.seams:on_pause:1", pause),
    "change_settings": ("sglang_layered.seams:change_settings:1", change_settings),
    "has_step in a decode": ("sglang_layered.seams:has_step:40", nothing),
    "run_layers in a cohort": ("sglang_layered.runner.layered_runner:LayeredRunner.run_layers:3", nothing),
}


def layered(folder: Path, model: Path, *flags: str, **env: str) -> ServerProcess:
    """A layered server; without SGLang's minute for CUDA core dumps when its scheduler is slow to end."""
    env = forked(env | {"SGLANG_CUDA_COREDUMP_BEFORE_CRASH": "false"})
    return ServerProcess(model, [*FLAGS, *flags], log_path=folder / "server.log", env=env, grace_s=3)


def faulty(folder: Path, model: Path, fault: str) -> ServerProcess:
    server = layered(folder, model, FAULT=fault)
    start = server.command.index("-m")
    server.command[start : start + 2] = [str(HERE / "faulty_server.py")]
    return server


def everybody_hears_of_it(server: ServerProcess, trigger: Trigger) -> None:
    """All clients get an error in time, and then nothing is left of the server."""
    triggered_s = []

    async def note_and_trigger() -> None:
        triggered_s.append(time.monotonic())
        await trigger(server)

    endings = crowd(server.base_url, MANY, note_and_trigger)
    assert all(ending.is_error for ending in endings), endings
    assert max(ending.time_s for ending in endings) - triggered_s[0] < ERRORS_WITHIN_S, endings
    is_gone(server)


def is_gone(server: ServerProcess) -> None:
    deadline = time.monotonic() + GONE_WITHIN_S
    while (not server.has_exited() or survivors(server.pid)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert server.has_exited()
    assert survivors(server.pid) == []


def log_of(server: ServerProcess) -> str:
    return server.log_path.read_text(errors="replace")


@pytest.mark.parametrize("name", FAULTS)
def test_a_seam_that_raises(tiny_llama: Path, tmp_path: Path, name: str) -> None:
    fault, trigger = FAULTS[name]
    with faulty(tmp_path, tiny_llama, fault) as server:
        everybody_hears_of_it(server, trigger)
    log = log_of(server)
    assert "Scheduler hit an exception" in log
    assert f"injected fault in {fault.split(':')[1]}" in log


def test_a_loop_that_cannot_start_ends_the_server(tiny_llama: Path, tmp_path: Path) -> None:
    server = faulty(tmp_path, tiny_llama, "sglang_layered.seams:run_event_loop:1")
    with pytest.raises(LabError, match="ended before it was ready"), server:
        pass  # what starts nevertheless is ended
    assert "injected fault in run_event_loop" in log_of(server)


def test_a_killed_scheduler(tiny_llama: Path, tmp_path: Path) -> None:
    async def kill(server: ServerProcess) -> None:
        children = psutil.Process(server.pid).children(recursive=True)
        next(child for child in children if "sglang::scheduler" in child.cmdline()[0]).kill()

    with layered(tmp_path, tiny_llama) as server:
        everybody_hears_of_it(server, kill)
    assert "crashed with exit code -9" in log_of(server)


def serves(server: ServerProcess, seed: int) -> None:
    """Two requests, the second beside the first, get all their tokens."""
    asks = [Ask(prompt(9, seed), 0.0, 400), Ask(prompt(900, seed), 0.3, 5)]
    assert [len(output_tokens(answer)) for answer in answers(server.base_url, asks)] == [400, 5]


def test_hooks_that_raise_stop_nobody_and_a_shutdown_answers_first(tiny_llama: Path, tmp_path: Path) -> None:
    steps = tmp_path / "steps.jsonl"
    flags = ("--layered-policy", "faulty_hooks:RaisingPolicy")
    flags += ("--layered-listeners", "faulty_hooks:RaisingListener", f"jsonl={steps}")
    with layered(tmp_path, tiny_llama, *flags, PYTHONPATH=str(HERE)) as server:
        serves(server, 710)
        assert "injected fault in a policy" in log_of(server)
        assert not layered_steps(steps)
        on = {"server_args": {"layered_prefill": 1}}
        assert httpx.post(f"{server.base_url}/set_internal_state", json=on, trust_env=False).json() == [True]
        serves(server, 720)
        assert "injected fault in a listener" in log_of(server)

        async def terminate() -> None:
            psutil.Process(server.pid).terminate()

        endings = crowd(server.base_url, 200, terminate)
        assert not any(ending.is_error for ending in endings), endings
        is_gone(server)
    log = log_of(server)
    assert log.count("Listener faulty_hooks:RaisingListener raised") == 1 and "is detached" in log
    assert "Scheduler hit an exception" not in log
    assert max(step["num_groups"] for step in layered_steps(steps)) > 1


def layered_steps(path: Path) -> list[dict]:
    return [step for step in read_steps(path) if step["kind"] == "layered"]
