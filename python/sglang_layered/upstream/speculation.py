"""Speculative decoding beside a cohort: the worker's own decode, and the prompt's group in it or behind it.

SGLang's worker drafts, verifies and accepts as in a decode step of its own. In a fused step its target
model's forward, which verifies, is answered with one that runs the prompt's group too. With a cohort's last
group the worker also gets the prompt as a batch of its own, because some drafts read the prompt's hidden
states; then that forward is answered with what the groups have computed. Upstream:
srt/speculative/*_worker*.py `forward_batch_generation`, srt/managers/scheduler.py `run_batch`.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from sglang.srt.managers.overlap_utils import resolve_forward_inputs
from sglang.srt.managers.schedule_batch import ScheduleBatch
from sglang.srt.managers.utils import GenerationBatchResult
from sglang.srt.model_executor.forward_batch_info import CaptureHiddenMode, ForwardBatch
from sglang.srt.model_executor.model_runner import ModelRunnerOutput

from sglang_layered.runner.execution import ENCODER, FUSED, Execution
from sglang_layered.scheduler.batch import LayerGroupBatch
from sglang_layered.upstream.launch import StepLauncher, begin_launch
from sglang_layered.upstream.releases import serving


def speculates(scheduler: Any) -> bool:
    """True where decode steps draft and verify several tokens a request."""
    return not scheduler.spec_algorithm.is_none()


def num_draft_layers(scheduler: Any) -> int:
    """Layers that also compute each prompt, with its last group; 0 where no model drafts."""
    drafts = getattr(scheduler.draft_worker, "draft_worker", None)
    if drafts is None:
        return 0
    pools = [runner.token_to_kv_pool for runner in drafts.draft_runners]
    # Beside recurrent layers SGLang keeps the KV of attention in a pool within, and counts no layers itself.
    return sum((pool if hasattr(pool, "layer_num") else pool.full_kv_pool).layer_num for pool in pools)


class SpeculativeLauncher(StepLauncher):
    """Launches steps whose decode rows are SGLang's own: a draft, a verify and what follows them."""

    may_settle = True

    def __init__(self, scheduler: Any, execution: Execution) -> None:
        super().__init__(scheduler, execution)
        self._prompt_hidden_states = _hidden_states_for(scheduler.spec_algorithm)
        self._has_ring_slot = False  # of this step, taken by its decode
        advance_grammars_of_steps(scheduler)

    def launch(
        self, step: LayerGroupBatch, strategy: str | None
    ) -> list[tuple[ScheduleBatch, GenerationBatchResult]]:
        """Run the step; gives the decode's batch and result, and the cohort's after its last group."""
        decoded, alone = [], replace(step, decode=None)
        try:
            if step.decode is not None:
                decoded.append((step.decode, self._decode(step.decode, alone, strategy)))
            self._begin = _count_with_decode if decoded else begin_launch
            self._has_ring_slot = bool(decoded)
            finished = super().launch(alone, ENCODER if step.encodes else None)
        finally:
            self._shared = None
        for batch, result in finished:
            self._hand_on(batch, result)
        return decoded + finished

    def _decode(
        self, batch: ScheduleBatch, step: LayerGroupBatch, strategy: str | None
    ) -> GenerationBatchResult:
        """The worker's decode; in a fused step its forward runs the group of `step` as well."""
        with profiled_as(self._scheduler.profiler_manager, step.inflight.batch):
            if strategy != FUSED:
                return self._scheduler.run_batch(batch)
            with answering(self._model_runner, partial(self._verified, step)):
                result = self._scheduler.run_batch(batch)
        if self._shared is None:
            raise AssertionError("SGLang's worker decoded without asking its target model")
        return result

    def _verified(self, step: LayerGroupBatch, verify: ForwardBatch, **kwargs: Any) -> ModelRunnerOutput:
        """Drafts' rows and the group of `step` in one forward, in the place of the worker's own.

        Called by the worker inside SGLang's isolation of the decode, which has taken this step's ring slot.
        """
        scheduler, inflight = self._scheduler, step.inflight
        if not inflight.has_begun:
            resolve_forward_inputs(inflight.batch, scheduler.future_map)
        with scheduler._forward_isolation(inflight.batch, overlap=False):
            output = self._execution.run(replace(self._group_step(step), decode=verify), FUSED)
        inflight.has_begun = True
        # The worker reads the request pool again, after this forward.
        self._shared = replace(output, read_done=None)
        if output.decode_record is None:
            raise AssertionError("a fused step has the record of its forward")
        return replace(output.decode_record, logits_output=output.decode_logits)

    @contextmanager
    def _isolated(self, step: LayerGroupBatch) -> Iterator[None]:
        """The worker writes many fields of a batch; a step takes one slot of SGLang's ring of two."""
        takes_slot = self._scheduler.enable_overlap and not self._has_ring_slot
        with self._scheduler._forward_isolation(step.inflight.batch, overlap=takes_slot):
            yield

    def _result(
        self, batch: ScheduleBatch, forward: Any, logits: Any, recorded: Any
    ) -> GenerationBatchResult:
        """The worker's result of a prompt, whose logits and hidden states the groups have computed."""
        scheduler, indices, publish = self._scheduler, batch.req_pool_indices, {}
        if logits.mm_input_embeds is not None and not has_images(batch):
            logits.mm_input_embeds = None  # those with images have left: the draft embeds tokens as it does
        answer = replace(recorded, logits_output=logits)
        if scheduler.enable_overlap:
            publish["on_publish"] = partial(scheduler.future_map.publish, indices)
        with answering(self._model_runner, lambda *args, **kwargs: answer):
            result = scheduler.model_worker.forward_batch_generation(batch, **publish)
        result.copy_done = scheduler.device_module.Event()
        if not scheduler.enable_overlap:
            scheduler.update_cache_from_scheduler(batch, result)
            result.copy_to_cpu(
                return_logprob=batch.return_logprob, return_hidden_states=batch.return_hidden_states
            )
            return result
        slot = scheduler.batch_record_buf[scheduler.batch_record_ct]
        slot.extend(result.extra_keep_alive_refs or ())
        serving.relay(scheduler, batch, indices, result)
        serving.copy_to_host(scheduler, result, batch)
        return result

    def _hand_on(self, batch: ScheduleBatch, result: GenerationBatchResult) -> None:
        """Give the batch what its first draft starts from, before it is merged into the running batch."""
        batch.spec_info = draft = result.next_draft_input
        if self._scheduler.enable_overlap:
            draft.future_dsa_topk_indices_available = draft.dsa_topk_indices is not None
            draft.future_indices = batch.req_pool_indices


def make_launcher(scheduler: Any, execution: Execution) -> StepLauncher:
    """What launches the layered steps of this server.

    Raises:
        UnsupportedError: the model or its ranks cannot take two batches in a step.
    """
    return (SpeculativeLauncher if speculates(scheduler) else StepLauncher)(scheduler, execution)


def _hidden_states_for(algorithm: Any) -> CaptureHiddenMode | None:
    """Which hidden states of a prompt's rows its draft reads; None: whatever requests ask for."""
    if algorithm.is_standalone():
        return CaptureHiddenMode.NULL
    return CaptureHiddenMode.FULL if algorithm.is_eagle() else None


def _count_with_decode(scheduler: Any, stage: ScheduleBatch, batches: Sequence[ScheduleBatch]) -> None:
    """Stamp a cohort beside a decode that SGLang has counted as a step."""
    if serving.note_launch is not None:
        serving.note_launch(scheduler, batches)
    for batch in batches:
        batch.forward_iter = scheduler.forward_ct
        if batch.launch_ts is None:
            batch.launch_ts = time.monotonic()
        if scheduler.scripted_scheduler_hook is not None:
            scheduler.scripted_scheduler_hook.on_run_batch(batch)


@contextmanager
def profiled_as(profiler: Any, stage: ScheduleBatch) -> Iterator[None]:
    """Inside, SGLang's profiler counts the batch that is run as one of the stage of this one."""
    count = profiler._profile_batch_predicate
    vars(profiler)["_profile_batch_predicate"] = lambda batch: count(stage)
    try:
        yield
    finally:
        del vars(profiler)["_profile_batch_predicate"]


@contextmanager
def answering(model_runner: Any, answer: Callable[..., Any]) -> Iterator[None]:
    """Inside, `answer` is called for this model's next forward, and may call any number itself."""

    def once(*args: Any, **kwargs: Any) -> Any:
        del vars(model_runner)["forward"]
        return answer(*args, **kwargs)

    vars(model_runner)["forward"] = once
    try:
        yield
    finally:
        vars(model_runner).pop("forward", None)


def has_images(batch: ScheduleBatch) -> bool:
    """True when SGLang embeds a prompt batch by an encoder. Upstream: `ForwardBatch.contains_mm_inputs`."""
    return any(inputs is not None and inputs.contains_mm_input() for inputs in batch.multimodal_inputs or ())


def advance_grammars_of_steps(scheduler: Any) -> None:
    """Let a verify step find the results that are pending: ours are kept by steps, SGLang's by batches.

    Upstream: `Scheduler._advance_pending_grammar`.
    """

    def advance() -> None:
        for step in scheduler.result_queue:
            for outcome in step.outcomes:
                scheduler.batch_result_processor.advance_grammar_fsm(outcome.result, outcome.batch_at_launch)

    scheduler._advance_pending_grammar = advance


def must_settle(scheduler: Any, step: LayerGroupBatch | ScheduleBatch | None) -> bool:
    """True when the worker needs the tokens of a step that is pending to draft or to mask the next ones."""
    batch = step.decode if isinstance(step, LayerGroupBatch) else step
    if batch is None or not scheduler.enable_overlap:
        return False
    return bool(scheduler.is_disable_overlap_for_batch(batch, last_batch=None))
