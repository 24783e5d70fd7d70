"""Debug check of tensor-parallel ranks: all must run the same step, or a collective hangs or mixes rows."""

from __future__ import annotations

import zlib
from typing import Any

import torch
import torch.distributed
from sglang.srt.managers.schedule_batch import ScheduleBatch

from sglang_layered.errors import InvariantError
from sglang_layered.scheduler.batch import LayerGroupBatch


class RankCheck:
    """Compares every step over the ranks; does nothing with one rank or at level `basic`.

    Raises:
        InvariantError: on every rank, when they do not agree; the step has not run then.
    """

    def __init__(self, scheduler: Any, level: str) -> None:
        self._num_ranks = scheduler.ps.tp_size if level != "basic" else 1
        self.is_on = self._num_ranks > 1
        self._rank = scheduler.ps.tp_rank
        self._group = scheduler.tp_cpu_group

    def compare(self, step: LayerGroupBatch | ScheduleBatch | None) -> None:
        """Call once a step on every rank, before it runs."""
        if not self.is_on:
            return
        mine = describe(step)
        digest = torch.tensor([zlib.crc32(mine.encode())])
        digests = [torch.empty_like(digest) for _ in range(self._num_ranks)]
        torch.distributed.all_gather(digests, digest, group=self._group)
        if any(int(other) != int(digest) for other in digests):
            raise InvariantError(f"ranks would run different steps; rank {self._rank} has {mine}")


def describe(step: LayerGroupBatch | ScheduleBatch | None) -> str:
    """What a step would run, as text: kinds, requests in order, rows, layers."""
    if step is None:
        return "nothing"
    if isinstance(step, LayerGroupBatch):
        cohort = step.inflight.cohort
        decode = "no decode" if step.decode is None else describe(step.decode)
        return f"layers {cohort.group} of {cohort.plan} for {cohort.request_ids}, {decode}"
    rows = step.extend_lens if step.forward_mode.is_extend() else ()
    return f"{step.forward_mode.name} {[req.rid for req in step.reqs]} rows {list(rows or ())}"
