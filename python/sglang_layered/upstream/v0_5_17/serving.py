"""SGLang 0.5.17's event loop: ranks, what comes in, what times out, what is kept of a step.

Upstream: srt/managers/scheduler.py.
"""

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

import torch
from sglang.srt.managers.io_struct import AbortReq
from sglang.srt.managers.schedule_batch import ScheduleBatch

reader_of: Callable[[Any], Any] = attrgetter("war_fastpath_runner")
"""Of a worker: what has an event, as `READ_DONE`, for which `_apply_war_barrier` waits.

It is of the end of reads of the request pool; without one SGLang waits for the whole forward.
"""

READ_DONE = "war_fastpath_read_done_event"

GIVES_ADAPTERS_BACK = False
"""Whether the tokenizer process counts an adapter as free again however its request ends."""

note_launch: Callable[[Any, Sequence[ScheduleBatch]], None] | None = None
"""What SGLang counts of a launch, before it is stamped; nothing here that `begin_launch` does not."""


copy_rest: Callable[[Any, ScheduleBatch, Any], None] | None = None
"""Nothing: this release has no observers of sampling."""


def refuse_requests(scheduler: Any) -> None:
    """Nothing that `refusals.py` does not refuse by its flag."""


def ranks_of(scheduler: Any) -> Any:
    """Sizes and ranks: `tp_size`, `pp_rank`, `attn_tp_rank` and the like."""
    return scheduler.ps


def ranks_of_runner(model_runner: Any) -> Any:
    """The same of a ModelRunner."""
    return model_runner.ps


def num_replicas_of(scheduler: Any) -> int:
    """Data-parallel ranks of the server."""
    return scheduler.ps.dp_size or 1


def take_in(scheduler: Any) -> None:
    """Receive requests and dispatch them."""
    scheduler.process_input_requests(scheduler.request_receiver.recv_requests())


def note_idle(scheduler: Any) -> None:
    """The loop has no batch to run: this release keeps no account of it."""


def note_paused(scheduler: Any) -> None:
    """The engine is paused: this release keeps no account of it."""


def tend_requests(scheduler: Any, inflight: Any) -> None:
    """End what waits or runs too long, and queue requests whose grammar has been compiled.

    SGLang does both where it looks for new prompts.
    """
    scheduler._abort_on_waiting_timeout()
    scheduler._abort_on_running_timeout(scheduler.running_batch)
    if scheduler.grammar_manager.has_waiting_grammars():
        for req in scheduler.grammar_manager.get_ready_grammar_requests():
            scheduler._add_request_to_queue(req)
    if scheduler.enable_hierarchical_cache:
        collect_events(scheduler)
    scheduler._abort_on_running_timeout(inflight)


def collect_events(scheduler: Any) -> None:
    """Take in which writes and loads of the hierarchical cache have ended; SGLang does so as above.

    Until then it keeps their nodes locked. Every tensor rank must call it in the same step.
    """
    scheduler.tree_cache.check_hicache_events()


def end_late_ones(scheduler: Any) -> None:
    """End requests that have waited too long, as SGLang does where it looks at its queue."""
    scheduler._abort_on_waiting_timeout()


def relay(scheduler: Any, batch: ScheduleBatch, indices: torch.Tensor, result: Any) -> None:
    """Keep what the next step of these rows of the request pool starts from."""
    scheduler._relay_forward_payload(indices, result)


def copy_to_host(scheduler: Any, result: Any, batch: ScheduleBatch) -> None:
    """Start the copy of a result to the host, beside the next forward."""
    scheduler.copy_stream.wait_stream(scheduler.forward_stream)
    with scheduler.copy_stream_ctx:
        result.copy_to_cpu(
            return_logprob=batch.return_logprob, return_hidden_states=batch.return_hidden_states
        )


def forget_aborted(scheduler: Any, req: Any) -> None:
    """A storage backend may still fetch this request's prefix."""
    if scheduler.enable_hicache_storage:
        scheduler.tree_cache.release_aborted_request(req.rid)


def tell_aborted(scheduler: Any, req: Any) -> None:
    """Tell the tokenizer process that a request is over, with its reason."""
    end = AbortReq(finished_reason=req.finished_reason.to_json(), rid=req.rid)
    scheduler.ipc_channels.send_to_tokenizer.send_output(end, req)


def wait_for_rows(scheduler: Any) -> None:
    """On the forward stream: wait for what a forward of a pipeline stage starts from."""
    scheduler.forward_stream.wait_stream(scheduler.schedule_stream)
