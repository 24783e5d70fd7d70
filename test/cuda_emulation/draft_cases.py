"""Decode steps that draft and verify, on the emulated GPU: alone, and beside a cohort. In a worker."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from emulated_graphs import GRAPHS
from emulated_streams import recorded
from faults import planted
from memory_watch import WATCH
from scenario import Emulated
from scenario_requests import LONG, SHORT
from sglang_layered.core.events import StepDone

NUM_DECODED = 20  # tokens of a request that must outlast the long prompt, several a step
ASKED = [*((tokens, NUM_DECODED) for tokens, _ in SHORT), *LONG]


def check(case: dict[str, Any]) -> dict[str, Any]:
    """Tokens and drafts of each request alone and beside a cohort, and what runs with faults show.

    Where it is asked for also beside a cohort in steps that verify with the group's rows in one forward, as
    servers without graphs do: `fused`.
    """
    emulated = Emulated.start(Path(case["model"]), **case["flags"])
    result: dict[str, Any] = {
        "overlap": emulated.stepped.scheduler.enable_overlap,
        "num_captures": GRAPHS.num_captures,
        "num_captures_when_ready": emulated.num_captures_when_ready,
        "alone": [played(emulated, [request]) for request in ASKED],
        "faults": {},
    }
    name_relayed(emulated)
    result["beside"] = beside(emulated)
    if case["fuses"]:
        emulated.use("fused")
        result["fused"] = beside(emulated)
    for name in case["faults"]:
        with planted(name, emulated):
            result["faults"][name] = beside(emulated)
    return result


def name_relayed(emulated: Emulated) -> None:
    """Watch what a step's worker hands to the next one's, which is there once it was handed on."""
    relay = vars(emulated.stepped.scheduler.future_map)
    for name in ("new_seq_lens_buf", "topk_index_buf", "hidden_states_buf"):
        if name in relay:
            WATCH.name(relay[name], name)


def beside(emulated: Emulated) -> dict[str, Any]:
    """The short ones decode while the long one passes the layer groups, with all that was recorded."""
    replays, mismatches = GRAPHS.num_replays, len(GRAPHS.mismatches)
    with recorded() as order:
        seen = played(emulated, ASKED)
    return seen | {
        "num_replays": GRAPHS.num_replays - replays,
        "mismatches": GRAPHS.mismatches[mismatches:],
        "violations": order.violations,
        "num_accesses": order.num_accesses,
    }


def played(emulated: Emulated, asked: list[tuple[list[int], int]]) -> dict[str, Any]:
    """Answers; of each request its verified steps and right drafts; and the ways of the layered steps."""
    stepped = emulated.stepped
    *running, last = asked
    rids = [stepped.send(*request) for request in running]
    stepped.step_until(lambda: stepped.scheduler.running_batch.batch_size() == len(rids))
    rids.append(stepped.send(*last))
    tokens = stepped.finish(*rids)
    reqs = [stepped.reqs[rid] for rid in rids]
    steps = [event for event in stepped.events if isinstance(event, StepDone)]
    ways = Counter(str(step.strategy) for step in steps if step.kind == "layered")
    stepped.drain()
    return {
        "tokens": tokens,
        "drafts": [[req.spec_verify_ct, req.spec_num_correct_drafts] for req in reqs],
        "layered_steps": dict(ways),
    }
