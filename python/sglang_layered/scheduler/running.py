"""Which requests decode now, and which will beside the next prompts."""

from __future__ import annotations

from itertools import islice
from typing import Any


def num_running(scheduler: Any) -> int:
    """Requests that decode: 0, 1, or 2 for any more. SGLang filters the batch where it changes it."""
    running = scheduler.running_batch
    if running.is_prefill_only:
        return 0
    unfinished = (req for req in running.reqs if not req.finished())
    return sum(1 for _ in islice(unfinished, 2))


def running_soon(scheduler: Any) -> list[Any]:
    """Requests that decode once SGLang has merged the latest prompts into the running batch."""
    reqs = list(scheduler.running_batch.reqs)
    last = scheduler.last_batch
    if last is not None and last is not scheduler.running_batch and last.forward_mode.is_extend():
        reqs += [req for req in last.reqs if req is not scheduler.chunked_req]
    return [req for req in reqs if not req.finished()]
