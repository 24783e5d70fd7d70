"""Nothing waits while it could run: asserted after every step of the stepped scheduler."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from sglang.srt.runtime_context import get_parallel

from sglang_layered.upstream.cache import session_slots_of

MOST_STEPS = 3  # with the overlap scheduler a result is known a step late
MARGIN = 64  # KV slots that SGLang's admission may want beyond what the requests need


class Liveness:
    """Counts the steps in which the first of the queue had all that it needs and nobody came or left.

    SGLang looks at the queue again when a running request leaves. Room that a test makes by other means is
    not seen until then, or until nothing runs.
    """

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        self.most_steps = MOST_STEPS
        self._steps = 0
        self._unseen = False
        self._waited: set[str] = set()
        self._ran: set[str] = set()

    def room_was_made(self) -> None:
        """Room that SGLang has not been told of."""
        self._unseen, self._steps = bool(self._running()), 0

    def after_step(self, is_in_flight: bool) -> None:
        waiting = {req.rid for req in self._scheduler.waiting_queue}
        admitted, self._waited = self._waited - waiting, waiting
        running = {req.rid for req in self._running()}
        if self._ran - running or not running:
            self._unseen, self._steps = False, 0
        self._ran = running
        if admitted or is_in_flight or self._unseen or not self._first_could_run():
            self._steps = 0
            return
        self._steps += 1
        assert self._steps <= self.most_steps, f"{self._first.rid} could run and waits"

    def _running(self) -> list[Any]:
        scheduler = self._scheduler
        batches = [batch for batch in (scheduler.running_batch, scheduler.last_batch) if batch is not None]
        return list({req.rid: req for batch in batches for req in batch.reqs if not req.finished()}.values())

    @property
    def _first(self) -> Any:
        return min(self._scheduler.waiting_queue, key=lambda req: -(req.priority or 0))

    def _first_could_run(self) -> bool:
        scheduler, running = self._scheduler, self._running()
        if not scheduler.waiting_queue or scheduler.chunked_req is not None:
            return False
        if len(running) >= get_parallel().pp_max_micro_batch_size:
            return False
        if not scheduler.req_to_token_pool.available_size():
            return False
        cache = scheduler.tree_cache
        free = scheduler.token_to_kv_pool_allocator.available_size() + cache.evictable_size()
        promised = sum(_left(req) + 2 for req in running)
        first = self._first
        return bool(free - promised >= first.seqlen + _left(first) + MARGIN)


class LateWork:
    """Steps that compute a request after its abort."""

    def __init__(self) -> None:
        self._steps: Counter[str] = Counter()
        self._most: dict[str, int] = {}
        self._latest: set[str] = set()  # computed by the latest step

    def aborted(self, rids: set[str]) -> None:
        """SGLang takes a running request out with the next results of a step that computed it.

        With the overlap scheduler it has launched one step more by then.
        """
        self._most |= {rid: 1 if rid in self._latest else 2 for rid in rids}

    def after_step(self, aborted: set[str], computed: set[str]) -> None:
        self._latest = computed
        self._steps.update(aborted & computed)
        late = {rid: steps for rid, steps in self._steps.items() if steps > self._most[rid]}
        assert not late, f"computed after aborts: {late}"


class Turns:
    """However many short prompts overtake a cohort, it ends: one cohort of them runs between two groups."""

    def __init__(self, loop: Any, model: Any) -> None:
        self._loop = loop
        self._model = model
        self._steps: Counter[int] = Counter()  # of each cohort in flight, by its batch
        self.anybody = False  # a policy says who overtakes

    def short_ones(self, rids: set[str]) -> set[str]:
        """Who of these may have overtaken the cohort in flight."""
        most, log = self._loop.controls.config.short_tokens, self._model.log
        return {rid for rid in rids if log.several and (self.anybody or log.ran[rid] <= most)}

    def after_step(self) -> None:
        items = {id(item.batch): item for item in self._loop.cohorts.inflight}
        self._steps = Counter({key: self._steps[key] + 1 for key in items})
        for key, steps in self._steps.items():
            assert steps <= self.most_steps, f"{items[key].cohort} is in flight for {steps} steps"

    @property
    def most_steps(self) -> int:
        """That a cohort may be in flight."""
        num_layers = self._model.num_layers
        several = (1 + num_layers) ** self.anybody * self._model.log.several  # who overtakes may be overtaken
        return int(num_layers * (1 + num_layers * several))


def _left(req: Any) -> int:
    left: int = req.sampling_params.max_new_tokens - len(req.output_ids)
    return left


def assert_whole(scheduler: Any, stuck: set[str], running_batches: Sequence[Any]) -> None:
    """No slot and no row is lost; only sessions that SGLang never closes may hold some."""
    allocator, cache = scheduler.token_to_kv_pool_allocator, scheduler.tree_cache
    rows = scheduler.req_to_token_pool
    held, sessions = scheduler.pool_stats_observer, session_slots_of(cache)
    free = allocator.available_size() + cache.evictable_size()
    assert free + cache.protected_size() + held.session_held_tokens() == allocator.size
    assert rows.available_size() + held.session_held_req_count() == rows.size
    assert stuck or free == allocator.size
    assert sessions is not None and set(sessions.slots) <= stuck, (sessions, stuck)
    assert not any(batch.batch_is_full for batch in running_batches), "an idle scheduler would admit nobody"
