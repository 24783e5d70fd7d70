"""Prompts that wait, as a step policy sees them: their tokens, and their order by deadline."""

from __future__ import annotations

from typing import Any

from sglang_layered.auto.deadlines import WaitingPrompt, order_by_slack
from sglang_layered.core.pacing import StepPolicy


def waiting_tokens(scheduler: Any, most: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Tokens to compute of prompts that wait, and tokens before them, until `most` are together."""
    lens: list[int] = []
    prefixes: list[int] = []
    chunked = scheduler.chunked_req
    reqs = ([] if chunked is None else [chunked]) + scheduler.waiting_queue
    for req in reqs:
        done = req.extend_range.end if req is chunked else len(req.prefix_indices)
        if req.seqlen > done:
            lens.append(req.seqlen - done)
            prefixes.append(done)
        if sum(lens) >= most:
            break
    return tuple(lens), tuple(prefixes)


def order_by_deadline(scheduler: Any, policy: StepPolicy, now_s: float, limit_ms: float | None) -> None:
    """Prompts with a limit on their first token go by slack; SGLang then takes them in this order."""
    queue = scheduler.waiting_queue
    if limit_ms is None or len(queue) < 2 or not _is_first_come(scheduler):
        return
    prompts = [
        WaitingPrompt(
            getattr(req, "layered_arrived_s", now_s),
            policy.prompt_s(req.seqlen - len(req.prefix_indices)),
        )
        for req in queue
    ]
    queue[:] = [queue[index] for index in order_by_slack(prompts, now_s, limit_ms / 1e3)]


def _is_first_come(scheduler: Any) -> bool:
    args = scheduler.server_args
    return bool(args.schedule_policy == "fcfs" and not args.enable_priority_scheduling)
