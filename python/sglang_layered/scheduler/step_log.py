"""The step log: one JSON line per engine step, for tests and research; off unless a path is given."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from sglang_layered.scheduler.batch import LayerGroupBatch


class StepLog:
    """Appends step records to a JSONL file.

    Fields: `step` (SGLang's forward counter), `kind` (decode, layered), `t_s` (monotonic, at the step's end),
    `decode` (request id to output tokens so far, after the step), and for a layered step `group`
    [start, end), `group_index`, `num_groups`, `prompt` (request id to prompt rows).
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: TextIO = path.open("a", buffering=1)

    def stock(self, step: int, kind: str, reqs: Sequence[Any]) -> None:
        """Record a step that stock SGLang ran."""
        self._write({"step": step, "kind": kind, "decode": _output_lens(reqs)})

    def layered(self, step: int, batch: LayerGroupBatch, decode_reqs: Sequence[Any]) -> None:
        """Record a layered step, before the cohort advances."""
        inflight = batch.inflight
        self._write(
            {
                "step": step,
                "kind": "layered",
                "decode": _output_lens(decode_reqs),
                "group": [batch.group.start, batch.group.end],
                "group_index": inflight.cohort.next_group,
                "num_groups": inflight.cohort.plan.num_groups,
                "prompt": {
                    req.rid: length
                    for req, length in zip(inflight.reqs, inflight.batch.extend_lens, strict=True)
                },
            }
        )

    def _write(self, record: dict[str, Any]) -> None:
        self._file.write(json.dumps({**record, "t_s": round(time.monotonic(), 6)}) + "\n")


def _output_lens(reqs: Sequence[Any]) -> dict[str, int]:
    return {req.rid: len(req.output_ids) for req in reqs}
