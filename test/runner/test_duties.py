"""What SGLang does with every batch beside running it is done once for every batch of a layered step."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from harness import SteppedScheduler
from prompts import prompt
from sglang_layered.core.choice import StrategyChoice
from sglang_layered.errors import UnsupportedError
from sglang_layered.scheduler.batch import LayerGroupBatch
from sglang_layered.upstream import launch
from sglang_layered.upstream.launch import StepLauncher
from sglang_layered.upstream.releases import serving

Batch = tuple[str, tuple[str, ...]]


def named(batch: Any) -> Batch:
    """Stage and requests of a batch."""
    return batch.forward_mode.name, tuple(req.rid for req in batch.reqs)


class Ran:
    """What was launched, step by step, in SGLang's way or as a layered step."""

    def __init__(self, stepped: SteppedScheduler, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps: list[list[Batch]] = []
        self.layered: list[bool] = []
        scheduler, launcher = stepped.scheduler, stepped.loop._launcher
        run_batch, launch = scheduler.run_batch, launcher.launch

        def run_stock(batch: Any) -> Any:
            self._note([batch], layered=False)
            return run_batch(batch)

        def run_layered(step: LayerGroupBatch, strategy: str | None) -> Any:
            decode = [] if step.decode is None else [step.decode]
            self._note([step.inflight.batch, *decode], layered=True)
            return launch(step, strategy)

        monkeypatch.setattr(scheduler, "run_batch", run_stock)
        monkeypatch.setattr(launcher, "launch", run_layered)

    def _note(self, batches: list[Any], *, layered: bool) -> None:
        self.steps.append([named(batch) for batch in batches])
        self.layered.append(layered)


@pytest.fixture
def ran(stepped: SteppedScheduler, monkeypatch: pytest.MonkeyPatch) -> Ran:
    return Ran(stepped, monkeypatch)


def traffic(stepped: SteppedScheduler) -> None:
    """Decodes, a cohort that finishes, one that is dropped while others decode, and a whole prompt."""
    stepped.send(prompt(10, 1), 30)
    stepped.step(2)
    stepped.finish(stepped.send(prompt(300, 2), 3))
    rid = stepped.send(prompt(300, 3), 3)
    stepped.step_until(lambda: stepped.next_group == 2)
    stepped.abort(rid)
    stepped.step(3)
    assert stepped.next_group is None


class Adapter:
    """Stands where SGLang prepares a batch for its forward, and hands it on."""

    def __init__(self) -> None:
        self.prepared: list[Batch] = []

    def maybe_prepare_mlp_sync_batch(self, batch: Any, need_sync: bool | None = None) -> Any:
        self._note(batch)
        return batch

    def maybe_convert_decode_to_extend(self, batch: Any) -> Any:
        return batch  # SGLang 0.5.23 asks it, too

    def prepare_for_forward(self, batch: Any, *, chunked_req: Any) -> Any:
        self._note(batch)
        return batch

    def _note(self, batch: Any) -> None:
        if batch is not None:
            self.prepared.append(named(batch))


@pytest.mark.parametrize("adapter", ["dp_attn_adapter", "ngram_embedding_manager"])
def test_every_batch_is_prepared_once_before_it_runs(
    stepped: SteppedScheduler, ran: Ran, monkeypatch: pytest.MonkeyPatch, adapter: str
) -> None:
    fake = Adapter()
    monkeypatch.setattr(stepped.scheduler, adapter, fake)
    traffic(stepped)
    expected: list[Batch] = []
    for step in ran.steps:
        fresh = [batch for batch in step if batch[0] == "DECODE" or batch not in expected]
        expected += fresh
    assert any(ran.layered)
    assert fake.prepared == expected


def test_every_batch_is_marked_as_scheduled_once(
    stepped: SteppedScheduler, ran: Ran, monkeypatch: pytest.MonkeyPatch
) -> None:
    marked: list[Batch] = []
    for module in ("sglang.srt.managers.scheduler", "sglang_layered.upstream.launch"):
        monkeypatch.setattr(f"{module}.set_schedule_time_batch", lambda batch: marked.append(named(batch)))
    traffic(stepped)
    decodes = [batch for step in ran.steps for batch in step if batch[0] == "DECODE"]
    prompts = dict.fromkeys(batch for step in ran.steps for batch in step if batch[0] != "DECODE")
    assert [batch for batch in marked if batch[0] == "DECODE"] == decodes
    assert [batch for batch in marked if batch[0] != "DECODE"] == list(prompts)


def test_the_profiler_counts_every_step_once(
    stepped: SteppedScheduler, ran: Ran, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages: list[str] = []
    manager = stepped.scheduler.profiler_manager
    monkeypatch.setattr(manager, "_profile_batch_predicate", lambda batch: stages.append(named(batch)[0]))
    traffic(stepped)
    assert stages == [step[0][0] for step in ran.steps]
    assert stages.count("EXTEND") > sum(ran.layered) > 4


def test_a_scripted_runtime_is_told_of_every_batch(
    stepped: SteppedScheduler, ran: Ran, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Batch] = []
    hook = SimpleNamespace(on_run_batch=lambda batch: told.append(named(batch)))
    monkeypatch.setattr(stepped.scheduler, "scripted_scheduler_hook", hook)
    traffic(stepped)
    assert told == [batch for step in ran.steps for batch in step]


def test_a_prompt_is_busy_from_its_first_group_on(
    stepped: SteppedScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = stepped.scheduler
    clock = SimpleNamespace(now_s=1000.0)

    def tick() -> float:
        clock.now_s += 0.001
        return clock.now_s

    monkeypatch.setattr(launch, "time", SimpleNamespace(monotonic=tick))
    monkeypatch.setattr(
        "sglang.srt.managers.scheduler.time",
        SimpleNamespace(**{**vars(time), "monotonic": tick, "perf_counter": lambda: clock.now_s}),
    )
    stepped.send(prompt(10, 1), 60)
    stepped.step(3)
    before_us, tokens = scheduler.total_prefill_busy_us, scheduler.total_prefill_uncached_tokens
    rid = stepped.send(prompt(300, 2), 3)
    stepped.step_until(lambda: stepped.next_group == 1)
    inflight = stepped.loop.inflight
    launched_s, num_decodes = inflight.batch.launch_ts, 0
    while stepped.next_group is not None:
        assert inflight.batch.launch_ts == launched_s
        stepped.step()
        assert scheduler.running_batch.launch_ts > launched_s
        num_decodes += 1
    stepped.finish(rid)
    assert num_decodes > 2
    assert scheduler.total_prefill_uncached_tokens - tokens == 300
    assert scheduler.total_prefill_busy_us - before_us > num_decodes * 1000


def test_sglangs_delay_for_tests_holds_for_layered_steps(
    stepped: SteppedScheduler, ran: Ran, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    stepped.send(prompt(10, 1), 20)
    stepped.step(2)
    rid = stepped.send(prompt(300, 2), 1)
    stepped.step_until(lambda: stepped.next_group == 1)
    num_steps = len(ran.steps)
    monkeypatch.setattr(stepped.scheduler, "forward_sleep_time", 0.25)
    monkeypatch.setattr(launch.time, "sleep", slept.append)
    stepped.finish(rid)
    assert slept == [0.25] * (len(ran.steps) - num_steps)


@pytest.mark.parametrize(
    ("synced", "ngram", "message"),
    [
        (True, False, "gather rows over the ranks: .*; leave --moe-a2a-backend"),
        (False, True, "cannot serve a-model: it embeds n-grams .*; serve it in chunked mode"),
    ],
)
def test_a_server_that_cannot_take_two_batches_a_step_is_refused(
    synced: bool, ngram: bool, message: str
) -> None:
    scheduler = SimpleNamespace(
        require_mlp_sync=synced,
        ngram_embedding_manager=SimpleNamespace(enabled=ngram),
        server_args=SimpleNamespace(model_path="a-model"),
    )
    with pytest.raises(UnsupportedError, match=f"--prefill-mode layered .*{message}"):
        StepLauncher(scheduler, None)


class Waits:
    """Stands for the schedule stream and writes down what it waits for."""

    def __init__(self) -> None:
        self.on: list[str] = []

    def wait_event(self, event: object) -> None:
        self.on.append("event")

    def wait_stream(self, stream: object) -> None:
        self.on.append("stream")


@pytest.mark.parametrize(("strategy", "waits_for"), [("sequential", "stream"), ("fused", "event")])
def test_the_scheduler_waits_for_the_prompt_too(
    stepped: SteppedScheduler, monkeypatch: pytest.MonkeyPatch, strategy: str, waits_for: str
) -> None:
    """SGLang's decode graph says early that the request pool was read; the prompt beside it reads later.

    A fused step has an event of its own, once all of it is planned.
    """
    scheduler, execution = stepped.scheduler, stepped.loop._execution
    if not scheduler.enable_overlap:
        pytest.skip(reason="without overlap the scheduler has no stream of its own")
    worker, decode_alone = scheduler.tp_worker, execution._runner.decode_alone

    def decode_early(batch: Any) -> Any:
        setattr(serving.reader_of(worker), serving.READ_DONE, object())
        return decode_alone(batch)

    waits = Waits()
    stepped.send(prompt(10, 1), 30)
    stepped.step(2)
    stepped.send(prompt(300, 2), 2)
    with monkeypatch.context() as patch:
        patch.setattr(execution, "choice", StrategyChoice(strategy))
        patch.setattr(execution._runner, "decode_alone", decode_early)
        patch.setattr(execution._runner, "_reads_in_plans", True)
        patch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(record_event=object))
        patch.setattr(scheduler, "_war_barrier_enabled", True)
        patch.setattr(scheduler, "schedule_stream", waits)
        patch.setattr(scheduler, "forward_stream", SimpleNamespace(wait_stream=lambda stream: None))
        stepped.step()
    assert waits.on == [waits_for]
    assert getattr(serving.reader_of(worker), serving.READ_DONE) is None
    stepped.drain()
