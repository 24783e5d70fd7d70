"""Layered graphs are captured at start, before "ready", and counted where SGLang sizes the KV cache later."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.model_executor.model_runner_components import kv_pool_runtime

from fake_graphs import fake_graphs
from harness import SteppedScheduler, listen
from prompts import alone, prompt
from release_differences import KV_SIZED_LATE
from sglang_layered.config import LayeredConfig
from sglang_layered.runner import at_start
from sglang_layered.runner.decode_graphs import paths
from sglang_layered.runner.decode_graphs.graphs import PROLOGUE
from sglang_layered.runner.layered_runner import LayeredRunner
from sglang_layered.scheduler.loop import LayeredLoop
from sglang_layered.upstream.memory import GRAPHS, keep_room_for_prompts, note_graphs

GIB = 1 << 30


@pytest.fixture
def model_runner(stepped: SteppedScheduler) -> Iterator[Any]:
    """The runner of the shared scheduler, which afterwards is as it was, with its loop."""
    model_runner, loop = stepped.scheduler.tp_worker.model_runner, stepped.loop
    kept = dict(vars(model_runner))
    yield model_runner
    stepped.drain()
    vars(model_runner).clear()
    vars(model_runner).update(kept)
    stepped.loop = stepped.scheduler.layered_loop = loop


@pytest.fixture
def captures(model_runner: Any, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every capture of layered graphs, on the fake recorder."""
    made: list[Any] = []

    def capture(runner: Any, calls: Any) -> Any:
        made.append(fake_graphs(runner, 8, (4,)))
        return made[-1][0]

    monkeypatch.setattr(paths, "make_decode_graphs", capture)
    return made


def test_the_start_captures_and_the_loop_takes_what_is_there(
    stepped: SteppedScheduler, model_runner: Any, captures: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    asked = [(prompt(12 + seed, 400 + seed), 25) for seed in range(3)] + [(prompt(300, 410), 6)]
    expected = [alone(stepped, *request) for request in asked]
    model_runner.init_cuda_graphs()
    assert len(captures) == 1, "SGLang calls us where it captures its own graphs"
    scheduler = stepped.scheduler
    loop = LayeredLoop(scheduler, LayeredConfig.from_server_args(scheduler.server_args))
    stepped.loop = scheduler.layered_loop = loop
    listen(loop, stepped)
    running = [stepped.send(*request) for request in asked[:3]]
    stepped.step_until(lambda: scheduler.running_batch.batch_size() == 3)
    assert stepped.finish(*running, stepped.send(*asked[3])) == expected
    [(graphs, recorder)] = captures
    assert loop._execution._runner.decode_paths.graphs is graphs
    assert any(name == PROLOGUE for _, name in recorder.replayed)
    assert at_start.LATE not in caplog.text


def test_a_loop_without_a_start_of_ours_says_so(
    model_runner: Any, captures: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    """As after an update of this package, while SGLang has the patches of the one before."""
    at_start.make_runner(model_runner)
    started = at_start.take_runner(model_runner, LayeredRunner)
    assert at_start.LATE not in caplog.text
    late = at_start.take_runner(model_runner, LayeredRunner)
    assert late is not started and len(captures) == 2
    assert at_start.LATE in caplog.text


def test_what_the_start_took_is_said(
    model_runner: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    free = iter([20.0, 18.75])
    monkeypatch.setattr(at_start, "free_gib", lambda runner: next(free))
    monkeypatch.setattr(at_start, "LayeredRunner", lambda runner: "made")
    model_runner.device = "cuda"
    with caplog.at_level(logging.INFO):
        at_start.make_runner(model_runner)
    assert "1.25 GiB for attention backends and graphs, 18.75 GiB are left" in caplog.text
    assert "already (--mem-fraction-static)" in caplog.text
    assert at_start.take_runner(model_runner, LayeredRunner) == "made"


def test_sglang_shows_the_cost_of_our_graphs_beside_its_own(
    stepped: SteppedScheduler, model_runner: Any
) -> None:
    note_graphs(model_runner, 1.5, 30.0)
    note_graphs(model_runner, 2.5, 40.0)  # captured anew, as after new weights
    worker = stepped.scheduler.tp_worker
    assert worker.graph_memory_usage[GRAPHS] == 2.5 and worker.graph_time_usage[GRAPHS] == 40.0
    assert "decode" in worker.graph_memory_usage


class Sized:
    """A GPU of 80 GiB whose KV cache SGLang's own function sizes after the captures."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fraction: float, free_gib: float) -> None:
        self.budget_gib: float | None = None
        world = SimpleNamespace(world_size=1, cpu_group=None)
        for name, answer in (
            ("get_world_group", world),
            ("get_available_gpu_memory", free_gib),
            ("get_device_memory_capacity", 80 * 1024.0),
        ):
            monkeypatch.setattr(kv_pool_runtime, name, lambda *_, answer=answer, **__: answer)
        monkeypatch.setattr(
            "sglang_layered.upstream.memory.get_device_memory_capacity", lambda _: 80 * 1024.0
        )
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
        monkeypatch.setattr(kv_pool_runtime, "mambaish_config", lambda _: None)
        decode = SimpleNamespace(max_bs=256, backend="full")
        self.runner = SimpleNamespace(
            device="cuda",
            gpu_id=0,
            mem_fraction_static=fraction,
            pre_model_load_memory=79.0,
            max_running_requests=256,
            max_total_num_tokens=10**6,
            model_config=None,
            server_args=SimpleNamespace(
                cuda_graph_config=SimpleNamespace(decode=decode),
                disaggregation_mode="null",
                pre_capture_activation_reserve_mb=lambda capacity: 12.5 * 1024 if capacity > 60 * 1024 else 0,
            ),
            token_to_kv_pool=SimpleNamespace(
                post_capture_backed_bytes=0, finalize_backing=lambda _: None, dtype=torch.bfloat16
            ),
            token_to_kv_pool_allocator=SimpleNamespace(resize=lambda _: None),
            kv_cache_configurator=SimpleNamespace(
                config_from_budget=self._note, resolve_max_num_reqs=lambda _: 256
            ),
        )

    def kv_gib(self) -> float:
        """What the KV cache gets."""
        kv_pool_runtime.compute_post_capture_kv_resize(self.runner)
        assert self.budget_gib is not None
        return self.budget_gib

    def _note(self, budget_bytes: int, cap_tokens: int) -> Any:
        self.budget_gib = budget_bytes / GIB
        return SimpleNamespace(
            max_total_num_tokens=1, full_max_total_num_tokens=None, swa_max_total_num_tokens=None
        )


@KV_SIZED_LATE
def test_a_kv_cache_sized_after_the_captures_leaves_room_for_prompts_without_graphs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Free are 20 GiB after all captures. SGLang would leave 2 % of the device."""
    sized = Sized(monkeypatch, fraction=0.98, free_gib=20.0)
    assert sized.kv_gib() == pytest.approx(20 - 0.02 * 79)
    keep_room_for_prompts(sized.runner)
    assert sized.kv_gib() == pytest.approx(20 - 12.5)


@KV_SIZED_LATE
def test_a_fraction_that_leaves_enough_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    sized = Sized(monkeypatch, fraction=0.8, free_gib=20.0)
    keep_room_for_prompts(sized.runner)
    assert sized.runner.mem_fraction_static == 0.8
