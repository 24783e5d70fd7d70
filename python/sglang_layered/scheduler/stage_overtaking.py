"""Short prompts overtake on pipeline stages: they enter the first before it is free, and go first on each.

On every stage the oldest cohort runs a group between two turns of others (`works_of`), so it takes twice its
groups at most. A stream of short prompts keeps no long one out: they enter an occupied pipeline only while
long ones are in it, and whoever is in it leaves.
"""

from typing import Any

from sglang.srt.managers.schedule_batch import ScheduleBatch

from sglang_layered.scheduler.overtaking import Overtaking
from sglang_layered.upstream.overtake import admit_only, chunks_keep_room, looks_at_queue, precedence


class StageOvertaking(Overtaking):
    """Who enters beside cohorts for which SGLang's own admission waits. Every rank asks in the same tick."""

    def urgency(self, batch: ScheduleBatch) -> tuple[int, bool]:
        """Cohorts of less go first on a stage."""
        if not self.is_on:
            return (0, False)
        return min(precedence(self._scheduler, req) for req in batch.reqs), self.is_long(batch)

    def chosen(self) -> list[Any]:
        """Prompts of the queue that may enter now."""
        scheduler = self._scheduler
        if not (self.is_on and scheduler.waiting_queue and looks_at_queue(scheduler) and self._has_place()):
            return []
        chosen = self._chosen(self._in_flight)
        return chosen if chunks_keep_room(scheduler, chosen) else []

    def admit(self, chosen: list[Any], running: ScheduleBatch) -> ScheduleBatch | None:
        """The prompt batch that SGLang makes of them beside this micro-batch's requests."""
        return admit_only(self._scheduler, chosen, self._in_flight, running)

    @property
    def _in_flight(self) -> list[Any]:
        return [req for item in self._cohorts.inflight for req in item.reqs]

    def _has_place(self) -> bool:
        """True where a long cohort is to be overtaken on the first stage, or keeps others out of it."""
        items, stages = self._cohorts.inflight, self._cohorts.stages
        most = len(stages.layers) + self._most_parked
        on_first = [item for item in items if stages.stage_of(item.cohort.group) == 0]
        if len(items) >= most or len(on_first) > self._most_parked:
            return False
        if on_first:
            return on_first[0].has_run and self.is_long(on_first[0].batch)
        num_long = sum(self.is_long(item.batch) for item in items)
        keeps_out = self._scheduler.chunked_req is not None or num_long >= len(stages.layers)
        return keeps_out and num_long > 0

    def _is_needed(self) -> bool:
        return self._most_parked > 0
