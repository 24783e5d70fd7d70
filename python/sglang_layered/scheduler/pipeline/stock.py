"""What SGLang's pipeline loop calls, as it is without layered mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sglang.srt.managers.schedule_batch import ScheduleBatch
from sglang.srt.managers.scheduler import NextBatchPlan


class Stock:
    """SGLang's own methods, kept before ours take their names."""

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        self.next_batch = scheduler.get_next_batch_to_run
        self.launch = scheduler._pp_launch_batch
        self.results = scheduler._pp_prep_batch_result

    def next_decode(self, running_batch: ScheduleBatch, last_batch: Any) -> NextBatchPlan:
        """SGLang's next batch without admission; a long prompt between two chunks is left alone."""
        with self._closed():
            return self.next_batch(running_batch=running_batch, last_batch=last_batch)

    @contextmanager
    def _closed(self) -> Iterator[None]:
        scheduler = self._scheduler
        chunked, scheduler.chunked_req = scheduler.chunked_req, None
        aborted, scheduler._pending_chunked_abort_req = scheduler._pending_chunked_abort_req, None
        scheduler.get_new_batch_prefill = lambda running: NextBatchPlan(None, running)
        try:
            yield
        finally:
            del scheduler.get_new_batch_prefill
            scheduler.chunked_req = chunked
            scheduler._pending_chunked_abort_req = aborted
