"""Checks speculative decoding beside cohorts, algorithm by algorithm, and writes what was seen as JSON."""

from __future__ import annotations

import os
from collections import Counter
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

os.environ["TORCH_COMPILE_DISABLE"] = "1"  # SGLang compiles small functions of its drafts, for minutes

from families_on_cpu import FLAGS, use_references
from family_run import close, further_slots

use_references()

import click  # noqa: E402
import torch  # noqa: E402
from drafts_on_cpu import load_ngram_corpus, stand_in  # noqa: E402
from sglang.srt.arg_groups import speculative_hook  # noqa: E402

from case_by_case import check_all  # noqa: E402
from drafted_cases import CASES, Case  # noqa: E402
from drafted_charges import charged, counted  # noqa: E402
from drafted_grammars import check_grammars  # noqa: E402
from drafted_images import ImageRun, answers_of_hugging_face  # noqa: E402
from drafted_pages import check_pages  # noqa: E402
from drafted_sessions import right_turns  # noqa: E402
from family_checks import ExpertOracle, Run, chunks_of, hugging_face, run, sequential  # noqa: E402
from harness import SteppedScheduler  # noqa: E402
from prompts import prompt  # noqa: E402
from recurrent_checks import check_states, found_again  # noqa: E402
from sglang_layered.core.choice import StepShape, StrategyChoice  # noqa: E402
from sglang_layered.errors import UnsupportedError  # noqa: E402
from sglang_layered.upstream import aux_states  # noqa: E402
from sglang_layered.upstream.speculation import num_draft_layers  # noqa: E402
from storm import storm  # noqa: E402

APART = "one layer a group, apart"
NUM_BACKGROUND = 90  # tokens of a request that must outlast prompts, several a step
TRACKED_TOKENS = 64
GROUP_TOKENS, CHUNK_TOKENS, UNEVEN_GROUPS, LONGEST = 64, 128, 3, 3


@dataclass
class Seen:
    """What was seen of a case with overlap or without; `equal` compares with decoding token by token."""

    equal: dict[str, bool]
    accepted: dict[str, tuple[int, int]]  # verified steps of all requests, drafts that were right
    cached_tokens: int
    num_chunks: int
    num_overtaken: int
    strategies: dict[str, list[str]]
    expert_bytes: dict[str, tuple[int, int]]  # that the server counted, and that its layers chose
    kept_alive: dict[str, int]  # steps whose tensors SGLang's ring of two took, and all steps
    num_draft_layers: int  # that a cohort's last step is said to run, too
    events: dict[str, bool] = field(default_factory=dict)
    storm: dict[str, Any] = field(default_factory=dict)
    log_probabilities: list[list[float]] = field(default_factory=list)
    charged: dict[str, Any] = field(default_factory=dict)
    right_turns: list[list[bool]] = field(default_factory=list)
    images: dict[str, Any] = field(default_factory=dict)
    found_again: dict[str, int | bool] = field(default_factory=dict)
    grammars: dict[str, Any] = field(default_factory=dict)
    pages: dict[str, Any] = field(default_factory=dict)


def asked_for() -> list[list[int]]:
    """Seven prompts of 1 to 300 tokens, the fifth starts as the third; then all of them once more."""
    made = [prompt(length, index) for index, length in enumerate((12, 100, 70, 300, 0, 1, 40))]
    made[4] = made[2] + prompt(40, 44)
    return [*made, *made]


def check(case: Case, expected: list[list[int]], *, overlap: bool) -> Seen:
    flags = {"disable_overlap_schedule": not overlap} | case.speculates
    flags["page_size"] = case.page_size if overlap else 1
    if overlap and case.is_recurrent:
        # A state is kept for the prefix cache where a verified step passes a multiple of this many tokens.
        flags |= further_slots() | {"mamba_track_interval": TRACKED_TOKENS}
    stepped = scheduler(case, **flags)
    assert stepped.scheduler.enable_overlap == overlap
    one_layer_a_group = {
        "layered_prefill": 1,
        "layered_num_groups": stepped.num_layers,
        "layered_max_parked": 1,
    }
    ways: dict[str, dict[str, float]] = {
        "stock": {"layered_prefill": 0},
        "uneven": {"layered_prefill": 1, "layered_num_groups": UNEVEN_GROUPS},
        "one layer a group": one_layer_a_group,
        APART: one_layer_a_group,
    }
    if not case.is_thorough:
        del ways["uneven"]
    runs, accepted, ring, before = {}, {}, count_ring_slots(stepped), stepped.scheduler.forward_ct
    expert_bytes = {}
    for name, settings in ways.items():
        stepped.drain()
        oracle, bytes_before = ExpertOracle(stepped.scheduler.tp_worker.model_runner.model), counted(stepped)
        with sequential(stepped) if name == APART else nullcontext():
            runs[name] = run(stepped, asked_for(), **settings)
        accepted[name] = acceptance(stepped, runs[name].rids)
        stepped.drain()
        expert_bytes[name] = (counted(stepped) - bytes_before, oracle.stop())
    kept_alive = {"slots": ring["slots"], "steps": stepped.scheduler.forward_ct - before}
    assert stepped.change({"layered_max_parked": 0})
    layered = runs["one layer a group"]
    seen = Seen(
        equal={name: one.tokens == expected for name, one in runs.items()},
        accepted=accepted,
        cached_tokens=layered.cached_tokens,
        num_chunks=chunks_of(layered, layered.rids[LONGEST]),
        num_overtaken=layered.num_overtaken,
        strategies={name: strategies_of(one) for name, one in runs.items()},
        expert_bytes=expert_bytes,
        kept_alive=kept_alive,
        num_draft_layers=num_draft_layers(stepped.scheduler),
    )
    if case.is_thorough and not case.is_recurrent:
        seen.right_turns = right_turns(stepped, NUM_BACKGROUND)
    if case.is_thorough and overlap:  # what may go wrong without may go wrong with it
        if not case.has_images:
            stepped.loop._execution.choice = InTurns()
        groups = (1, stepped.num_layers - 1)
        # With drafts SGLang's session keeps the states behind tokens that its answer was cut before: the next
        # turn's tokens are others, in all modes, unless a drop makes the turn start from nothing.
        checks = check_states(stepped, groups, NUM_BACKGROUND, has_sessions=not case.is_recurrent)
        seen.events = checks.equal
        seen.storm = asdict(storm(stepped))
        seen.log_probabilities = log_probabilities(stepped)
        seen.charged = asdict(charged(stepped, NUM_BACKGROUND // 3))
        seen.grammars = asdict(check_grammars(stepped))
        if case.page_size > 1:
            seen.pages = asdict(check_pages(stepped, case.page_size, NUM_BACKGROUND))
        if case.is_recurrent:
            seen.found_again = found_again(stepped, NUM_BACKGROUND)
        if case.has_images:
            seen.images = asdict(ImageRun(case.target, stepped).check())
    return seen


class InTurns(StrategyChoice):
    """Every other step runs its rows apart."""

    def __init__(self) -> None:
        super().__init__("fused", "sequential")
        self.learns = False
        self._num_steps = 0

    def choose(self, shape: StepShape) -> str:
        self._num_steps += 1
        return self.strategies[self._num_steps % 2]


def strategies_of(seen: Run) -> list[str]:
    return sorted({step.strategy for step in seen.steps if step.strategy is not None})


def let_drafts_overlap() -> None:
    """SGLang allows it on a GPU alone: on a CPU it says no, and asks for streams that a CPU does not have."""
    speculative_hook._disable_overlap_schedule_for_cpu = lambda args: None
    torch.Tensor.record_stream = lambda tensor, stream: None  # type: ignore[method-assign]


def log_probabilities(stepped: SteppedScheduler) -> list[list[float]]:
    """Of a prompt's tokens and of the answer's, in SGLang's own scheduling and in groups beside a decode."""
    found = []
    for settings in ({"layered_prefill": 0}, {"layered_prefill": 1, "layered_num_groups": UNEVEN_GROUPS}):
        stepped.drain()
        assert stepped.change(settings)
        stepped.send(prompt(20, 5), NUM_BACKGROUND)
        stepped.step(3)
        rid = stepped.send(prompt(90, 6), 8, return_logprob=True, logprob_start_len=0)
        stepped.finish(rid)
        told = stepped.reqs[rid].logprob
        found.append([*told.input_token_logprobs_val[1:], *told.output_token_logprobs_val[:8]])
    return found


def refusal_of_lost_rows(case: Case) -> str:
    """What a start says where the rows that a draft reads are gathered wrongly."""
    gather = aux_states._whole
    aux_states._whole = lambda rows: rows.tensors["hidden_states"].clone()
    try:
        scheduler(case, **case.speculates)
    except UnsupportedError as error:
        return str(error)
    finally:
        aux_states._whole = gather
    return "none"


def count_ring_slots(stepped: SteppedScheduler) -> Counter[str]:
    """Count how often SGLang keeps a forward's tensors alive, for two times; once a step is right."""
    counted, record = Counter[str](), stepped.scheduler.record_batch_in_overlap

    def counting(batch: Any) -> None:
        counted["slots"] += 1
        record(batch)

    stepped.scheduler.record_batch_in_overlap = counting
    return counted


def acceptance(stepped: SteppedScheduler, rids: list[str]) -> tuple[int, int]:
    reqs = [stepped.reqs[rid] for rid in rids]
    return sum(req.spec_verify_ct for req in reqs), sum(req.spec_num_correct_drafts for req in reqs)


def scheduler(case: Case, **flags: Any) -> SteppedScheduler:
    # Watchdogs of closed schedulers hear of no more steps, and would end this process after 5 minutes.
    size = {"max_total_tokens": 4000, "chunked_prefill_size": CHUNK_TOKENS, "watchdog_timeout": 36_000}
    own = {"enable_streaming_session": True, "enable_expert_traffic_metrics": True}
    return SteppedScheduler(
        case.target,
        layered_group_tokens=GROUP_TOKENS,
        **size | own | FLAGS.get(case.arch, {}) | flags,
    )


def check_case(case: Case) -> dict[str, Any]:
    stepped = scheduler(case)
    expected = run(stepped, asked_for(), layered_prefill=0).tokens
    half = len(expected) // 2
    equal = hugging_face(case.target, asked_for()[:half]) * 2 == expected
    close()
    found: dict[str, Any] = {"equal_hugging_face": equal}
    if case.has_images:
        found["images_hugging_face"] = answers_of_hugging_face(case.target)
    for overlap in (False, True) if case.is_thorough else (True,):
        found["with overlap" if overlap else "without overlap"] = asdict(
            check(case, expected, overlap=overlap)
        )
        close()
    if case.algorithm == "EAGLE3" and case.is_thorough:
        found["lost rows"] = refusal_of_lost_rows(case)
        close()
    return found


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.argument("names", nargs=-1)
def main(out: Path, names: tuple[str, ...]) -> None:
    """Check the cases NAMES (all without any) and write what was seen to OUT."""
    stand_in()
    load_ngram_corpus()
    let_drafts_overlap()
    check_all(out, names or CASES, lambda name: check_case(CASES[name]), close)


if __name__ == "__main__":
    main()
