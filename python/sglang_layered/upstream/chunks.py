"""A long prompt's chunk whose results are still on their way round when the prompt starts again, or ends.

Results arrive some ticks after the launch. Meanwhile a prompt between two chunks may be sent back to the
queue (pause, no room) or ended (abort), and may even be in its first chunk again. SGLang then takes the
chunk's row for the prompt's last one, and hands out a token that belongs to the middle of the prompt.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sglang.srt.managers.schedule_batch import ScheduleBatch


@dataclass(frozen=True, slots=True)
class LaunchedChunk:
    """The request of a launched prompt batch that has more chunks to come, and how often it had started."""

    req: Any
    num_starts: int

    @classmethod
    def of(cls, batch: ScheduleBatch) -> "LaunchedChunk | None":
        """The batch's, if one of its prompts is not at its end."""
        req = batch.chunked_req
        return None if req is None or req not in batch.reqs else cls(req, req.retraction_count)

    @property
    def is_stale(self) -> bool:
        """True when the prompt is not any more where it was at the launch."""
        # SGLang's own abort between two chunks leaves the count of chunks under way, and so counts this one.
        ended = self.req.finished() and self.req.inflight_middle_chunks <= 0
        return bool(ended or self.req.retraction_count != self.num_starts)


@contextmanager
def stand_in(batch: ScheduleBatch, chunk: LaunchedChunk | None) -> Iterator[None]:
    """While results are processed a stand-in takes a stale chunk's row, as a middle chunk without output.

    A row must be taken, since log-probabilities of the batch's other prompts are found by counting.
    """
    if chunk is None or not chunk.is_stale:
        yield
        return
    other = copy.copy(chunk.req)
    other.finished_reason, other.is_retracted, other.inflight_middle_chunks = None, False, 1
    other.input_token_logprobs = None
    other.temp_input_top_logprobs_val = other.temp_input_top_logprobs_idx = None
    other.temp_input_token_ids_logprobs_val = other.temp_input_token_ids_logprobs_idx = None
    reqs = batch.reqs
    batch.reqs = [other if req is chunk.req else req for req in reqs]
    try:
        yield
    finally:
        batch.reqs = reqs
