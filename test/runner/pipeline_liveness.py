"""Nothing waits while it could run in one of the pipeline's micro-batches: asserted after every tick."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sglang.srt.runtime_context import get_parallel

from liveness import MARGIN, Turns

if TYPE_CHECKING:
    from exact_pipeline import ExactPipeline


class PipelineLiveness:
    """Counts the ticks in which the first request of the queue had all that it needs and was not admitted.

    A micro-batch that SGLang has marked full looks at the queue again when a request leaves any of them, or
    when it is empty. Room that a test makes by other means is not seen until then.
    """

    def __init__(self, exact: ExactPipeline) -> None:
        self._exact = exact
        self._scheduler = exact.scheduler
        self._ticks = 0
        self._unseen = False
        self._waited: set[str] = set()
        self._ran: set[str] = set()

    def room_was_made(self) -> None:
        """Room that SGLang has not been told of."""
        self._unseen = True

    def after_tick(self) -> None:
        waiting = {req.rid for req in self._scheduler.waiting_queue}
        admitted, self._waited = self._waited - waiting, waiting
        running = {req.rid for req in self._exact.unfinished}
        if self._ran - running or not all(batch.reqs for batch in self._scheduler.running_mbs):
            self._unseen = False
        self._ran = running
        if admitted or self._unseen or not self._first_could_run():
            self._ticks = 0
            return
        self._ticks += 1
        first = self._first.rid
        assert self._ticks <= len(self._scheduler.mbs) + 1, f"{first} could run; {self._exact.describe()}"

    @property
    def _first(self) -> Any:
        return min(self._scheduler.waiting_queue, key=lambda req: -(req.priority or 0))

    def _first_could_run(self) -> bool:
        scheduler, cohorts = self._scheduler, self._exact.loop.cohorts
        if not scheduler.waiting_queue or scheduler.chunked_req is not None:
            return False
        if cohorts and not (cohorts.has_room and self._exact.loop.controls.is_layered):
            return False
        running = self._exact.unfinished
        most, num_rows = get_parallel().pp_max_micro_batch_size, scheduler.req_to_token_pool.available_size()
        if len(running) >= most or not num_rows:
            return False
        first, cache = self._first, scheduler.tree_cache
        free = scheduler.token_to_kv_pool_allocator.available_size() + cache.evictable_size()
        promised = sum(_left(req) + 2 for req in running)
        return bool(free - promised >= first.seqlen + _left(first) + MARGIN)


class StageTurns(Turns):
    """On each stage a cohort waits for the groups of older ones, and for one of others before each group."""

    @property
    def most_steps(self) -> int:
        cohorts = len(self._loop.stages.layers) + self._loop.controls.config.layered_max_parked
        return int(self._model.num_layers * (1 + self._model.log.several) * cohorts)


def _left(req: Any) -> int:
    left: int = req.sampling_params.max_new_tokens - len(req.output_ids)
    return left
