"""SGLang's pipeline loop in one process: its scheduler, its `event_loop_pp`, our hooks, virtual stages.

One process holds one pipeline rank. So the last rank's scheduler runs SGLang's own loop in a thread of its
own, a tick at a time; what the last rank would send round the ring comes back to it after as many ticks; and
each tick's stages run one after another on the exact model, each on the layers that it holds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any

from sglang.srt.runtime_context import get_parallel

from exact_model import ExactAttention, ExactModel
from exact_scheduler import ExactScheduler
from harness import SteppedScheduler, listen
from left_empty import left_empty
from pipeline_liveness import PipelineLiveness, StageTurns
from prompts import prompt
from release_differences import as_stage, settings_like, unproved_ranges
from sglang_layered.config import LayeredConfig
from sglang_layered.core.stages import PipelineStages
from sglang_layered.scheduler import pipeline
from sglang_layered.scheduler.pipeline import PipelineLoop
from virtual_stages import StageLog, Ticks, VirtualStages

HOOKED = (
    "get_next_batch_to_run",
    "update_running_batch",
    "_pp_launch_batch",
    "_pp_prep_batch_result",
    "_pp_process_batch_result",
    "_pp_send_dict_to_next_stage",
    "_pp_recv_dict_from_prev_stage",
)
REPLACED = ("request_receiver", "result_queue", "load_inquirer")


class ExactPipeline(ExactScheduler):
    """Sends requests whose answers are known through the pipeline loop, and checks every tick."""

    def __init__(
        self, stepped: SteppedScheduler, model: ExactModel, loop: PipelineLoop, ticks: Ticks
    ) -> None:
        super().__init__(stepped, model)
        self.loop = loop
        self.ticks = ticks
        self.liveness = PipelineLiveness(self)
        self.turns = StageTurns(loop, model)
        self.tokens_at_abort: dict[str, int] = {}  # of prompts in flight

    @property
    def cohort(self) -> tuple[str, ...]:
        return tuple(rid for item in self.loop.cohorts.inflight for rid in item.cohort.request_ids)

    @property
    def most_groups(self) -> int:
        """Groups are counted stage by stage, so the smallest stage limits them."""
        return min(layers.num_layers for layers in self.loop.stages.layers)

    @property
    def unfinished(self) -> list[Any]:
        """Requests that hold rows: they decode, are in a cohort, or between two chunks."""
        scheduler = self.scheduler
        found = [req for batch in scheduler.running_mbs for req in batch.reqs]
        found += [req for batch in scheduler.mbs if batch is not None for req in batch.reqs]
        found += [req for item in self.loop.cohorts.inflight for req in item.reqs]
        found += [] if scheduler.chunked_req is None else [scheduler.chunked_req]
        return list({req.rid: req for req in found if not req.finished()}.values())

    def abort(self, rid: str) -> None:
        super().abort(rid)
        self._note_aborts()

    def abort_all(self) -> None:
        super().abort_all()
        self._note_aborts()

    def step(self, times: int = 1) -> None:
        """Run ticks; a pause does not stop SGLang's pipeline loop."""
        for _ in range(times):
            self._step()

    def _note_aborts(self) -> None:
        for rid in set(self.cohort) & self.aborted:
            self.tokens_at_abort.setdefault(rid, len(self.stepped.reqs[rid].output_ids))

    def _step(self) -> None:
        log = self.model.log
        log.done.clear()
        unwanted = set(self.cohort) & self.aborted
        self.ticks.tick()
        done = Counter(log.done)
        assert set(done.values()) <= {1}, f"computed twice: {done}"
        assert not unwanted & set(self.cohort), f"nobody waits for {unwanted & set(self.cohort)}"
        self.check()
        self.liveness.after_tick()
        self.turns.after_step()

    def check(self) -> None:
        """What must hold between any two operations."""
        self._listen()
        for req in self.scheduler.waiting_queue:
            self.model.log.forget(req.rid)
        for rid in [rid for rid in self.live if self._has_ended(rid)]:
            self.live.remove(rid)
            self.model.log.forget(rid)
            self._check_answer(rid)
            self.conversations.ended(rid, answered=rid not in self.aborted)
        log, cohorts = self.model.log, self.loop.cohorts
        assert {rows.rid for rows, _ in log.open.values()} <= set(self.cohort)
        begun = {rid: layer for rid, layer in self._in_flight().items() if layer}
        assert begun == {rid: layer for rid, (_, layer) in log.open.items()}
        assert {rid for rid, _ in cohorts.ledger} == set(self.cohort)
        for item in cohorts.inflight:
            assert tuple(req.rid for req in item.reqs) == item.cohort.request_ids

    def _check_answer(self, rid: str) -> None:
        super()._check_answer(rid)
        if rid in self.tokens_at_abort:
            made = len(self.stepped.reqs[rid].output_ids)
            assert made == self.tokens_at_abort[rid], f"{rid} got a token after its abort"

    def _aborted_for_slots(self, rid: str) -> bool:
        """In no micro-batch does anybody else hold rows then; whose cohort was dropped waits."""
        is_aborted = super()._aborted_for_slots(rid)
        others = [req.rid for req in self.unfinished if not req.is_retracted]
        assert not (is_aborted and others), f"{rid} is aborted beside {others}; {self.describe()}"
        return is_aborted

    def running_batches(self) -> list[Any]:
        return list(self.scheduler.running_mbs)

    def wait_until_idle(self) -> None:
        self.step(3 * len(self.scheduler.running_mbs))
        assert self.scheduler.is_fully_idle(), self.describe()

    def _most_steps(self) -> int:
        return len(self.scheduler.running_mbs) * super()._most_steps()


@contextmanager
def exact_pipeline(stepped: SteppedScheduler, cuts: tuple[int, ...], **flags: Any) -> Iterator[ExactPipeline]:
    """Put an exact model on virtual stages under SGLang's pipeline loop; afterwards all is as it was.

    `flags` are settings of the loop other than the server's.
    """
    with left_empty(stepped):
        scheduler, plain, limit = stepped.scheduler, stepped.loop, get_parallel().pp_max_micro_batch_size
        max_total = scheduler.invariant_checker.max_total_num_tokens
        try:
            with _last_rank_of(scheduler, PipelineStages(cuts)) as model:
                config = replace(LayeredConfig.from_server_args(scheduler.server_args), **flags)
                with unproved_ranges():
                    loop = PipelineLoop(scheduler, config)
                    loop._launcher = VirtualStages(scheduler, model, loop.stages)
                listen(loop, stepped)
                listen(loop, model.log)
                stepped.loop = scheduler.layered_loop = loop
                with closing(Ticks(scheduler)) as ticks:
                    yield ExactPipeline(stepped, model, loop, ticks)
        finally:
            stepped.loop = scheduler.layered_loop = plain
            stepped.limit_running(limit)
            stepped.change_back()
            scheduler.invariant_checker.max_total_num_tokens = max_total


@contextmanager
def _last_rank_of(scheduler: Any, stages: PipelineStages) -> Iterator[ExactModel]:
    """The scheduler holds the last of these stages, and in truth an exact model with all their layers."""
    runner, num_stages = scheduler.tp_worker.model_runner, len(stages.layers)
    saved = {name: getattr(scheduler, name) for name in REPLACED}
    log_stats = scheduler.metrics_collector.log_stats
    kept = (runner.model, runner.attn_backend, pipeline.pipeline_stages)
    model = ExactModel(stages.num_layers, scheduler.token_to_kv_pool_allocator.size + scheduler.page_size)
    model.log = StageLog(stages.num_layers)
    model.log.cuts = stages.cuts
    vars(model).update(settings_like(runner.model))
    runner.model, runner.attn_backend = model, ExactAttention(model, runner.req_to_token_pool)
    runner._get_attention_backend = lambda **_: ExactAttention(model, runner.req_to_token_pool)
    pipeline.pipeline_stages = lambda _: stages
    try:
        with as_stage(scheduler, num_stages - 1, num_stages):
            yield model
    finally:
        for name in HOOKED:
            vars(scheduler).pop(name, None)
        for name, value in saved.items():
            setattr(scheduler, name, value)
        scheduler.metrics_collector.log_stats = log_stats
        runner.model, runner.attn_backend, pipeline.pipeline_stages = kept
        del runner._get_attention_backend


def decode_beside(exact: ExactPipeline, max_new_tokens: int = 60) -> str:
    """Something that decodes, so that the next prompts become cohorts."""
    rid = exact.send(prompt(10, 1), max_new_tokens)
    exact.step(7)
    return rid


def enter(exact: ExactPipeline, *rids: str) -> None:
    """Tick until these prompts are in flight."""
    for _ in range(10):
        if set(rids) <= set(exact.cohort):
            return
        exact.step()
    raise AssertionError(f"{rids} are not in flight; {exact.describe()}")
