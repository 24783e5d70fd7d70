"""A tick over pipeline stages does around its forward what SGLang does around a batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.model_executor.forward_batch_info import ForwardMode

from release_differences import ranks_of_stand_ins as ranks_of_stand_ins
from sglang_layered.core.cohort import Cohort
from sglang_layered.core.plan import LayerGroup, LayerGroupPlan
from sglang_layered.core.stages import PipelineStages
from sglang_layered.runner import layered_runner
from sglang_layered.runner.layered_runner import GroupStep, StageOutput, StageRunner
from sglang_layered.scheduler.batch import InFlightCohort
from sglang_layered.scheduler.tick import PipelineTick
from sglang_layered.upstream import pipeline as module
from sglang_layered.upstream.pipeline import StageLauncher

STAGES = PipelineStages((0, 4, 8))
SAMPLED = 7


def batch(mode: ForwardMode, *names: str) -> Any:
    reqs = [SimpleNamespace(rid=name, extend_range=None) for name in names]
    slots = torch.arange(len(reqs))
    return SimpleNamespace(
        reqs=reqs,
        forward_mode=mode,
        launch_ts=None,
        return_logprob=False,
        return_hidden_states=False,
        req_pool_indices=slots,
        out_cache_loc=slots,
        extend_lens=[1] * len(reqs),
    )


class Scheduler(SimpleNamespace):
    """One rank's scheduler: what a launch asks it for, and what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Any]] = []
        hook = SimpleNamespace(on_run_batch=lambda batch: self.told.append(("hook", batch)))
        profiler = SimpleNamespace(
            _profile_batch_predicate=lambda batch: self.told.append(("profiler", batch.forward_mode.name))
        )
        super().__init__(
            told=self.told,
            tp_worker=SimpleNamespace(
                model_runner=ModelRunner(server_args=SimpleNamespace(enable_lora=False))
            ),
            ps=SimpleNamespace(pp_rank=1),
            pp_group=SimpleNamespace(is_last_rank=True),
            device="cpu",
            forward_ct=10,
            forward_sleep_time=None,
            scripted_scheduler_hook=hook,
            profiler_manager=profiler,
            require_mlp_sync=False,
            ngram_embedding_manager=SimpleNamespace(enabled=False),
        )

    def update_cache_from_scheduler(self, batch: Any, result: Any) -> None:
        self.told.append(("cache", batch))

    def _relay_forward_payload(self, *given: Any) -> None:
        *_, result = given  # 0.5.23 has the batch before the indices
        self.told.append(("relay", result.next_token_ids.tolist()))

    def _pp_prepare_tensor_dict(self, result: Any, batch: Any) -> dict[str, Any]:
        return {"next_token_ids": result.next_token_ids}


class ModelRunner(SimpleNamespace):
    """Samples one token id."""

    def sample(self, logits: Any, forward: Any) -> torch.Tensor:
        return torch.full((len(forward.seq_lens),), SAMPLED)


class Runner:
    """Runs nothing; the last stage gives logits of both parts."""

    def run(self, step: GroupStep) -> StageOutput:
        return StageOutput("decode logits", "prompt logits")


@pytest.fixture
def scheduler(monkeypatch: pytest.MonkeyPatch, ranks_of_stand_ins: None) -> Scheduler:
    def prepare(self: StageLauncher, made: Any) -> Any:
        return SimpleNamespace(
            is_prefill_only=made.reqs[0].rid == "scored",
            return_logprob=False,
            seq_lens=made.req_pool_indices,
            input_ids=made.req_pool_indices,
        )

    scheduler = Scheduler()
    monkeypatch.setattr(StageLauncher, "_prepare", prepare)
    monkeypatch.setattr(
        module, "set_time_batch", lambda reqs, name, **kwargs: scheduler.told.append((name, kwargs))
    )
    return scheduler


def last_tick(name: str) -> tuple[PipelineTick, Any]:
    """A prompt runs its last group on the last stage, beside a request that decodes; gives its batch too."""
    plan = STAGES.joined([LayerGroupPlan.even(4, 1), LayerGroupPlan.even(4, 2)])
    cohort = Cohort(plan, (name,), 2)
    inflight = InFlightCohort(cohort, batch(ForwardMode.EXTEND, name))
    work: Any = SimpleNamespace(
        inflight=inflight, cohort=cohort, rows=(), stage=1, enters_stage=False, leaves_stage=True
    )
    return PipelineTick(batch(ForwardMode.DECODE, "decode"), (work,), (inflight,)), inflight.batch


def told(scheduler: Scheduler, kind: str) -> list[Any]:
    return [what for name, what in scheduler.told if name == kind]


def test_a_tick_counts_and_is_noted_as_one_step_of_both_batches(scheduler: Scheduler) -> None:
    tick, prompts = last_tick("prompt")
    StageLauncher(scheduler, Runner()).launch(3, tick, None)
    assert scheduler.forward_ct == tick.step.number == prompts.forward_iter == tick.decode.forward_iter == 11
    assert told(scheduler, "hook") == [prompts, tick.decode]
    assert told(scheduler, "profiler") == ["EXTEND"]
    assert told(scheduler, "cache") == [tick.decode, prompts]
    assert told(scheduler, "set_run_batch_cpu_start_time") == [{"trace_only": True}]
    assert told(scheduler, "set_run_batch_cpu_end_time") == [{"trace_only": True, "attrs": {"pp_mb_id": 3}}]


def test_a_prompt_keeps_the_time_of_its_first_tick(scheduler: Scheduler) -> None:
    tick, prompts = last_tick("prompt")
    prompts.launch_ts, tick.decode.launch_ts = 1.0, 2.0
    StageLauncher(scheduler, Runner()).launch(0, tick, None)
    assert prompts.launch_ts == 1.0
    assert tick.decode.launch_ts > 2.0


@pytest.mark.parametrize(("name", "token"), [("prompt", SAMPLED), ("scored", 0)])
def test_a_prompt_that_is_only_scored_is_not_sampled(scheduler: Scheduler, name: str, token: int) -> None:
    tick, _ = last_tick(name)
    _, outputs = StageLauncher(scheduler, Runner()).launch(0, tick, None)
    assert told(scheduler, "relay") == [[SAMPLED], [token]]
    assert outputs["prompt.next_token_ids"].tolist() == [token]


class Timer:
    """SGLang's device timer: which forwards it was wrapped around."""

    def __init__(self) -> None:
        self.categories: list[str] = []
        self.is_on = False

    @contextmanager
    def wrap(self, metadata: dict[str, str]) -> Iterator[None]:
        self.categories.append(metadata["category"])
        self.is_on = True
        yield
        self.is_on = False


def test_the_device_timer_measures_the_layers_of_a_tick(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = object.__new__(StageRunner)
    timer = Timer()
    runner._model_runner = SimpleNamespace(device_timer=timer)
    runner._prompt_backend = runner._ids = runner.group_graphs = None
    ran: list[bool] = []
    runner._calls = SimpleNamespace(num_layers=4, layers=lambda *args: ran.append(timer.is_on))
    monkeypatch.setattr(layered_runner, "plan_attention", lambda *args: None)
    monkeypatch.setattr(layered_runner, "attend", lambda *args: nullcontext())
    runner.run_layers(GroupStep(object(), None, LayerGroup(0, 2), object(), True), object())
    assert (ran, timer.categories) == ([True], ["extend"])
