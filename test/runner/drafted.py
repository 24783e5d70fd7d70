"""Stock scheduling with speculative decoding on a CPU, tokens, and how many drafts are right.

Schedulers may follow each other in a process (`close`); the prompts are the same for all.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"  # the slots of sliding-window pools come from a Triton kernel
os.environ["TORCH_COMPILE_DISABLE"] = "1"  # SGLang compiles small functions of its drafts, for minutes
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from tiny_models import drafted_model, use_the_cpu  # noqa: E402

use_the_cpu()

import torch  # noqa: E402
from drafts_on_cpu import load_ngram_corpus, stand_in  # noqa: E402
from sglang.srt.arg_groups import speculative_hook  # noqa: E402
from sglang.srt.distributed.parallel_state import (  # noqa: E402
    destroy_distributed_environment,
    destroy_model_parallel,
)
from sglang.srt.runtime_context import reset_context  # noqa: E402

from harness import SteppedScheduler  # noqa: E402
from prompts import prompt  # noqa: E402
from sglang_layered.upstream.cpu_choice import CPU_ATTENTION  # noqa: E402

CHAIN = {"speculative_num_steps": 3, "speculative_eagle_topk": 1, "speculative_num_draft_tokens": 4}
TREE = {"speculative_num_steps": 3, "speculative_eagle_topk": 2, "speculative_num_draft_tokens": 6}
# The kind of draft checkpoint (`make-draft`), and SGLang's flags.
ALGORITHMS: dict[str, tuple[str | None, dict[str, Any]]] = {
    "none": (None, {}),
    "ngram": (None, {"speculative_algorithm": "NGRAM", "speculative_num_draft_tokens": 6}),
    "standalone": ("standalone", {"speculative_algorithm": "STANDALONE", **CHAIN}),
    "eagle": ("eagle", {"speculative_algorithm": "EAGLE", **CHAIN}),
    "eagle-tree": ("eagle", {"speculative_algorithm": "EAGLE", **TREE}),
    "eagle3": ("eagle3", {"speculative_algorithm": "EAGLE3", **CHAIN}),
    "mtp": ("mtp", {"speculative_algorithm": "EAGLE", **CHAIN}),
}
FLAGS: dict[str, dict[str, Any]] = {"gpt_oss": {"moe_runner_backend": "triton"}}
# Tokens of the prompt, tokens to answer, and the turn of the loop before which a request comes. The last ones
# come again: NGRAM knows their answers then.
ASKED = ((5, 40, 0), (130, 30, 0), (40, 50, 2), (600, 40, 6), (17, 20, 9), (130, 30, 40), (40, 50, 60))


@dataclass(frozen=True, slots=True)
class Played:
    """Answers in the order of ASKED; how often requests were verified, and how many drafts were right."""

    answers: list[list[int]]
    num_verified: int
    num_right: int

    @property
    def acceptance_length(self) -> float:
        """Tokens that a request gets in a step, on average; 1 without drafts."""
        return 1 + self.num_right / max(self.num_verified, 1)


def drafted_scheduler(
    arch: str, algorithm: str, *, prefill_mode: str = "chunked", overlap: bool = False, **flags: Any
) -> SteppedScheduler:
    """A scheduler of a family's draftable model with a name in ALGORITHMS.

    `overlap`: with SGLang's overlap scheduler, which it forbids with drafts on a CPU.
    """
    stand_in()
    kind, own = ALGORITHMS[algorithm]
    if algorithm == "ngram":
        load_ngram_corpus()
    forbid = speculative_hook._disable_overlap_schedule_for_cpu
    if overlap:
        speculative_hook._disable_overlap_schedule_for_cpu = lambda server_args: None
        torch.Tensor.record_stream = lambda tensor, stream: None  # PyTorch takes streams of a GPU only
    target, draft = drafted_model(arch, kind)
    flags = {"max_total_tokens": 8000, "chunked_prefill_size": 256, **FLAGS.get(arch, {}), **own, **flags}
    try:
        return SteppedScheduler(
            target,
            prefill_mode=prefill_mode,
            attention_backend=CPU_ATTENTION,
            disable_overlap_schedule=not overlap,
            speculative_draft_model_path=None if draft is None else str(draft),
            **flags,
        )
    finally:
        speculative_hook._disable_overlap_schedule_for_cpu = forbid


def play(stepped: SteppedScheduler, asked: Sequence[tuple[int, int, int]] = ASKED) -> Played:
    """Send requests as ASKED says and run SGLang's own loop until all are answered; nothing stays behind."""
    scheduler, turn, rids = stepped.scheduler, 0, list[str]()

    def receive(**_: Any) -> list[Any]:  # SGLang 0.5.23 hands over requests of its own
        nonlocal turn
        due = [(length, answer) for length, answer, at in asked if at == turn]
        rids.extend(stepped.send(prompt(length, length), answer) for length, answer in due)
        turn += 1
        done = len(rids) == len(asked) and all(stepped.reqs[rid].finished() for rid in rids)
        scheduler.gracefully_exit = done and scheduler.is_fully_idle()
        return []

    receiver = scheduler.request_receiver
    scheduler.request_receiver = SimpleNamespace(recv_requests=receive)
    (scheduler.event_loop_overlap if scheduler.enable_overlap else scheduler.event_loop_normal)()
    scheduler.request_receiver, scheduler.gracefully_exit = receiver, False
    reqs = [stepped.reqs[rid] for rid in rids]
    assert scheduler.flush_cache(empty_cache=False), "the scheduler is not idle"
    wanted = {length: answer for length, answer, _ in asked}
    return Played(
        # What was accepted beyond the end of an answer stays in the list.
        [list(req.output_ids)[: wanted[len(req.origin_input_ids)]] for req in reqs],
        sum(req.spec_verify_ct for req in reqs),
        sum(req.spec_num_correct_drafts for req in reqs),
    )


def close() -> None:
    """Forget SGLang's global state, so that the next scheduler starts as in a new process."""
    destroy_model_parallel()
    destroy_distributed_environment()
    reset_context()
    gc.collect()
