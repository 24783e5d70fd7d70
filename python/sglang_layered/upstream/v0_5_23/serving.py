"""SGLang 0.5.23's event loop: ranks, what comes in, what times out, what is kept of a step.

Upstream: srt/managers/scheduler.py.
"""

import time
from collections.abc import Callable, Sequence
from operator import attrgetter, methodcaller
from typing import Any

import torch
from sglang.srt.managers.schedule_batch import ScheduleBatch
from sglang.srt.managers.scheduler import Scheduler, _make_abort_req
from sglang.srt.runtime_context import get_parallel

reader_of: Callable[[Any], Any] = attrgetter("last_shared_read_runner")
"""Of a worker: what has an event, as `READ_DONE`, for which `_apply_war_barrier` waits.

It is of the end of reads of the request pool; without one SGLang waits for the whole forward.
"""

READ_DONE = "shared_read_done_event"

GIVES_ADAPTERS_BACK = True
"""Whether the tokenizer process counts an adapter as free again however its request ends."""

copy_rest: Callable[[Any, ScheduleBatch, Any], None] | None = Scheduler._copy_auxiliary_output_to_cpu
"""Without overlap: start the copy of what an observer of sampling has found."""

NO_MASKS = (
    "return_sampling_mask is not tested over the pipeline stages of --prefill-mode layered; leave it out, or"
    " use a server in another mode."
)


NO_TOKENS = "The prompt has no tokens; send some."
"""Why such a prompt gets 400; SGLang as released ends in its forward."""


class _NoBeams:
    """SGLang's coordinator of beam searches, which takes no new one."""

    def __init__(self, coordinator: Any) -> None:
        self._coordinator = coordinator

    def __getattr__(self, name: str) -> Any:
        return getattr(self._coordinator, name)

    def validate_and_init(self, req: Any, recv_req: Any) -> str:
        """Why a beam search is answered with 400: it has more rows in a decode batch than requests."""
        return (
            "Beam search is not tested beside a cohort of --prefill-mode layered; leave beam_width out, or"
            " use a server in another mode."
        )


def refuse_requests(scheduler: Any) -> None:
    """Let requests be answered with 400 that a layered server cannot serve."""
    if not isinstance(scheduler.beam_coordinator, _NoBeams):
        scheduler.beam_coordinator = _NoBeams(scheduler.beam_coordinator)
    # Of the class: a second loop adds no second.
    add = type(scheduler)._add_request_to_queue.__get__(scheduler)

    def add_unless_refused(req: Any, is_retracted: bool = False) -> None:
        if req.return_sampling_mask and ranks_of(scheduler).pp_size > 1:
            scheduler._reject_sampling_mask_request(req, NO_MASKS)
            return
        if not req.origin_input_ids:
            req.set_finish_with_abort(NO_TOKENS)
        add(req, is_retracted)

    scheduler._add_request_to_queue = add_unless_refused


def note_launch(scheduler: Any, batches: Sequence[ScheduleBatch]) -> None:
    """What SGLang counts of a launch beside what `begin_launch` does; of a prompt once, at its first group.

    After an idle pass the time since the last step is none of this one's. Prompt tokens tell policy hrrn how
    old its requests are. Upstream: `Scheduler.run_batch`.
    """
    scheduler.metrics_reporter.record_scheduler_active(time.monotonic_ns())
    for batch in batches:
        is_decode = batch.forward_mode.is_decode()
        if batch.launch_ts is None or is_decode:
            batch.after_idle_gap = scheduler._sched_idled
            scheduler.processed_tokens_counter += 0 if is_decode else batch.extend_num_tokens
    scheduler._sched_idled = False


def ranks_of(scheduler: Any) -> Any:
    """Sizes and ranks: `tp_size`, `pp_rank`, `attn_tp_rank` and the like; they are the process's."""
    return get_parallel()


def ranks_of_runner(model_runner: Any) -> Any:
    """The same of a ModelRunner."""
    return get_parallel()


def num_replicas_of(scheduler: Any) -> int:
    """Data-parallel ranks of the server: replicas times groups of attention."""
    num_ranks: int = get_parallel().num_dp_ranks
    return num_ranks


take_in: Callable[[Any], Any] = methodcaller("ingest_requests")
"""Receive requests and dispatch them; requests that ran too long are aborted there."""


def note_idle(scheduler: Any) -> None:
    """The loop has no batch to run."""
    scheduler._sched_idled = True


def note_paused(scheduler: Any) -> None:
    """The engine is paused."""
    scheduler._record_scheduler_state_for_paused_engine()


def tend_requests(scheduler: Any, inflight: Any) -> None:
    """Queue requests whose grammar has been compiled; SGLang does so where it looks for new prompts.

    What waits or runs too long ends where requests are taken in: there SGLang also looks at `inflight`, its
    last batch.
    """
    collect_events(scheduler)
    if scheduler.grammar_manager.has_waiting_grammars():
        for req in scheduler.grammar_manager.get_ready_grammar_requests():
            scheduler._add_request_to_queue(req)


collect_events: Callable[[Any], Any] = methodcaller("_process_hicache_events")
"""Take in which writes and loads of the hierarchical cache have ended, before a batch is chosen.

Until then SGLang keeps their nodes locked. Every tensor rank must call it in the same step.
"""


def end_late_ones(scheduler: Any) -> None:
    """Requests that have waited too long ended where requests were taken in."""


def relay(scheduler: Any, batch: ScheduleBatch, indices: torch.Tensor, result: Any) -> None:
    """Keep what the next step of these rows of the request pool starts from."""
    scheduler._relay_forward_payload(batch, indices, result)


copy_to_host: Callable[[Any, Any, ScheduleBatch], None] = Scheduler._copy_result_to_cpu
"""Start the copy of a result to the host, beside the next forward, in SGLang's way."""


def forget_aborted(scheduler: Any, req: Any) -> None:
    """The cache, images and a streaming session may still keep something of this request."""
    scheduler._release_aborted_request(req)


def tell_aborted(scheduler: Any, req: Any) -> None:
    """Tell the tokenizer process that a request is over, with its reason."""
    scheduler.send_abort_output(_make_abort_req(req, finished_reason=req.finished_reason.to_json()), req)


def wait_for_rows(scheduler: Any) -> None:
    """On the forward stream: wait for what a pipeline stage starts from, also for rows on their way."""
    scheduler._pp_wait_forward_dependencies()
