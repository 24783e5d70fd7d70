"""Speculative decoding beside a cohort: first the worker's own decode, then the prompt's group.

SGLang's worker drafts, verifies and accepts as in a decode step of its own. With a cohort's last group it
also gets the prompt as a batch of its own, because some drafts read the prompt's hidden states; its target
model's forward is answered with what the groups have computed. Upstream: srt/speculative/*_worker*.py
`forward_batch_generation`, srt/managers/scheduler.py `run_batch`.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from sglang.srt.managers.schedule_batch import ScheduleBatch
from sglang.srt.managers.utils import GenerationBatchResult
from sglang.srt.model_executor.forward_batch_info import CaptureHiddenMode

from sglang_layered.runner.execution import ENCODER, Execution
from sglang_layered.scheduler.batch import LayerGroupBatch
from sglang_layered.upstream.launch import StepLauncher, begin_launch


def speculates(scheduler: Any) -> bool:
    """True where decode steps draft and verify several tokens a request."""
    return not scheduler.spec_algorithm.is_none()


def num_draft_layers(scheduler: Any) -> int:
    """Layers that also compute each prompt, with its last group; 0 where no model drafts."""
    drafts = getattr(scheduler.draft_worker, "draft_worker", None)
    if drafts is None:
        return 0
    pool = drafts.draft_runner.token_to_kv_pool
    # Beside recurrent layers SGLang keeps the KV of attention in a pool within.
    num_layers: int = getattr(pool, "full_kv_pool", pool).layer_num
    return num_layers


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
        decoded = []
        if step.decode is not None:
            decoded.append((step.decode, self._scheduler.run_batch(step.decode)))
        self._begin = _count_with_decode if decoded else begin_launch
        self._has_ring_slot = bool(decoded)
        finished = super().launch(replace(step, decode=None), ENCODER if step.encodes else None)
        for batch, result in finished:
            self._hand_on(batch, result)
        return decoded + finished

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
        if scheduler.enable_overlap:
            publish["on_publish"] = partial(scheduler.future_map.publish, indices)
        with answered(self._model_runner, replace(recorded, logits_output=logits)):
            result = scheduler.model_worker.forward_batch_generation(batch, **publish)
        result.copy_done = scheduler.device_module.Event()
        copy = partial(
            result.copy_to_cpu,
            return_logprob=batch.return_logprob,
            return_hidden_states=batch.return_hidden_states,
        )
        if not scheduler.enable_overlap:
            scheduler.update_cache_from_scheduler(batch, result)
            copy()
            return result
        slot = scheduler.batch_record_buf[scheduler.batch_record_ct]
        slot.extend(result.extra_keep_alive_refs or ())
        scheduler._relay_forward_payload(indices, result)
        scheduler.copy_stream.wait_stream(scheduler.forward_stream)
        with scheduler.copy_stream_ctx:
            copy()
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
    for batch in batches:
        batch.forward_iter = scheduler.forward_ct
        if batch.launch_ts is None:
            batch.launch_ts = time.monotonic()
        if scheduler.scripted_scheduler_hook is not None:
            scheduler.scripted_scheduler_hook.on_run_batch(batch)


@contextmanager
def answered(model_runner: Any, output: Any) -> Iterator[None]:
    """Inside, this model's next forward is answered with `output`, whatever it is asked for."""
    vars(model_runner)["forward"] = lambda *args, **kwargs: output
    try:
        yield
    finally:
        del vars(model_runner)["forward"]


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
