"""Decode steps that draft and verify, on the emulated GPU: alone, and beside a cohort. In a worker."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from emulated_graphs import GRAPHS
from emulated_streams import recorded
from faults import planted
from harness import SteppedScheduler
from memory_watch import WATCH
from scenario import Emulated
from scenario_requests import LONG, SHORT
from sglang_layered.core.events import DropReason, StepDone

Guesses = dict[str, list[list[int]]]  # by request
NUM_DECODED = 20  # tokens of a request that must outlast the long prompt, several a step
ASKED = [(tokens, NUM_DECODED) for tokens, _ in SHORT + LONG]


def check(case: dict[str, Any]) -> dict[str, Any]:
    """Tokens and drafts of each request alone and beside a cohort, and what runs with faults show.

    Where it is asked for also beside a cohort in steps that verify with the group's rows in one forward, as
    servers without graphs do: `fused`.
    """
    emulated = Emulated.start(Path(case["model"]), **case["flags"])
    guesses = note_guesses(emulated)
    result: dict[str, Any] = {
        "overlap": emulated.stepped.scheduler.enable_overlap,
        "num_captures": GRAPHS.num_captures,
        "num_captures_when_ready": emulated.num_captures_when_ready,
        "alone": [played(emulated, [request], guesses) for request in ASKED],
        "faults": {},
    }
    name_relayed(emulated)
    result["beside"] = beside(emulated, guesses)
    result["dropped"] = [played(emulated, ASKED, guesses, drop_before(group)) for group in case["drops"]]
    if case["fuses"]:
        emulated.use("fused")
        result["fused"] = beside(emulated, guesses)
    for name in case["faults"]:
        with planted(name, emulated):
            result["faults"][name] = beside(emulated, guesses)
    return result


def name_relayed(emulated: Emulated) -> None:
    """Watch what a step's worker hands to the next one's, which is there once it was handed on."""
    relay = vars(emulated.stepped.scheduler.future_map)
    for name in ("new_seq_lens_buf", "topk_index_buf", "hidden_states_buf"):
        if name in relay:
            WATCH.name(relay[name], name)


def note_guesses(emulated: Emulated) -> Guesses:
    """Each request's drafts from here on, step by step; a draft begins with the token that it goes on from.

    NGRAM's are not noted: they depend on what was answered before.
    """
    guesses: Guesses = defaultdict(list)
    drafts = getattr(emulated.stepped.scheduler.draft_worker, "draft_worker", None)
    if drafts is None:
        return guesses
    draft = drafts.draft

    def draft_and_note(batch: Any) -> Any:
        rids, made = [req.rid for req in batch.reqs], draft(batch)
        rows: list[list[int]] = made.draft_token.view(len(rids), -1).tolist()
        for rid, row in zip(rids, rows, strict=True):
            guesses[rid].append(row)
        return made

    drafts.draft = draft_and_note
    return guesses


def beside(emulated: Emulated, guesses: Guesses) -> dict[str, Any]:
    """The short ones decode while the long one passes the layer groups, with all that was recorded."""
    replays, mismatches = GRAPHS.num_replays, len(GRAPHS.mismatches)
    with recorded() as order:
        seen = played(emulated, ASKED, guesses)
    return seen | {
        "num_replays": GRAPHS.num_replays - replays,
        "mismatches": GRAPHS.mismatches[mismatches:],
        "violations": order.violations,
        "num_accesses": order.num_accesses,
    }


def drop_before(group: int) -> Callable[[SteppedScheduler], None]:
    """The prompt in flight starts again."""

    def drop(stepped: SteppedScheduler) -> None:
        stepped.step_until(lambda: stepped.next_group == group)
        stepped.loop.drop(DropReason.PAUSED)

    return drop


def played(
    emulated: Emulated,
    asked: list[tuple[list[int], int]],
    guesses: Guesses,
    then: Callable[[SteppedScheduler], None] = lambda stepped: None,
) -> dict[str, Any]:
    """Answers; of each request its verified steps, right drafts and guesses; ways of the layered steps."""
    stepped = emulated.stepped
    *running, last = asked
    rids = [stepped.send(*request) for request in running]
    stepped.step_until(lambda: stepped.scheduler.running_batch.batch_size() == len(rids))
    rids.append(stepped.send(*last))
    then(stepped)
    tokens = stepped.finish(*rids)
    reqs = [stepped.reqs[rid] for rid in rids]
    steps = [event for event in stepped.events if isinstance(event, StepDone)]
    ways = Counter(str(step.strategy) for step in steps if step.kind == "layered")
    stepped.drain()
    return {
        "tokens": tokens,
        "drafts": [[req.spec_verify_ct, req.spec_num_correct_drafts] for req in reqs],
        # With overlap one more step may have begun when the answer ended.
        "guesses": [guesses[req.rid][: req.spec_verify_ct] for req in reqs],
        "layered_steps": dict(ways),
    }
