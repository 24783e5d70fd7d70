"""How many prompt tokens the next cohort may have, and in which order prompts are taken.

SGLang takes both from its own state: `chunked_prefill_size` and the order of the waiting queue.
"""

from __future__ import annotations

from typing import Any

from sglang.srt.runtime_context import get_context

from sglang_layered.auto.deadlines import WaitingPrompt, order_by_slack
from sglang_layered.core.pacing import QueueView, StepPolicy
from sglang_layered.errors import ConfigError


class Admission:
    """The budget of a cohort: an operator allows a part of the server's, a step policy takes a part of that.

    `most_tokens` is what the operator allows; None without --chunked-prefill-size.
    """

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        self._at_start: int | None = scheduler.chunked_prefill_size
        self.most_tokens = self._at_start

    def check(self, wanted: int) -> int:
        """The whole pages of what an operator asks for.

        Raises:
            ConfigError: it is more than the server was started with, or less than a page.
        """
        limit, page = self._at_start, self._scheduler.page_size
        if limit is None:
            raise ConfigError("layered_cohort_tokens: this server was started with --chunked-prefill-size -1")
        if not page <= wanted <= limit:
            raise ConfigError(
                f"layered_cohort_tokens {wanted}: give {page} to {limit}, the server's --chunked-prefill-size"
            )
        return wanted - wanted % page

    def allow(self, num_tokens: int) -> None:
        """From the next cohort on, as an operator wants it."""
        self.most_tokens = num_tokens
        get_context().override(source="layered", chunked_prefill_size=num_tokens)
        self.take_all()

    def take_all(self) -> None:
        """No step policy decides: a cohort may have what the operator allows."""
        self._scheduler.chunked_prefill_size = self.most_tokens

    def take(self, wanted: int) -> None:
        """A step policy wants so many tokens: whole pages, one at least."""
        page, most = self._scheduler.page_size, self.most_tokens or wanted
        self._scheduler.chunked_prefill_size = min(max(wanted - wanted % page, page), most)

    def somebody_waits(self) -> bool:
        """True with a prompt in the queue, or one between two chunks."""
        return bool(self._scheduler.waiting_queue) or self._scheduler.chunked_req is not None

    def view(self, running: list[Any], due_s: float | None, most: int) -> QueueView:
        """What waits: tokens to compute and tokens before them, of prompts until `most` are together."""
        lens: list[int] = []
        prefixes: list[int] = []
        chunked = self._scheduler.chunked_req
        reqs = ([] if chunked is None else [chunked]) + self._scheduler.waiting_queue
        for req in reqs:
            done = req.extend_range.end if req is chunked else len(req.prefix_indices)
            if req.seqlen > done:
                lens.append(req.seqlen - done)
                prefixes.append(done)
            if sum(lens) >= most:
                break
        decode_tokens = sum(req.seqlen for req in running)
        return QueueView(tuple(lens), tuple(prefixes), len(running), decode_tokens, due_s, most)

    def order_by_deadline(self, policy: StepPolicy, now_s: float, limit_ms: float | None) -> None:
        """Prompts with a limit on their first token go by slack; SGLang then takes them in this order."""
        queue = self._scheduler.waiting_queue
        if limit_ms is None or len(queue) < 2 or not self._is_first_come():
            return
        prompts = [
            WaitingPrompt(
                getattr(req, "layered_arrived_s", now_s),
                policy.prompt_s(req.seqlen - len(req.prefix_indices)),
            )
            for req in queue
        ]
        queue[:] = [queue[index] for index in order_by_slack(prompts, now_s, limit_ms / 1e3)]

    def note_arrivals(self, now_s: float) -> None:
        """Who has come since the last step has come now."""
        for req in reversed(self._scheduler.waiting_queue):  # the youngest come last
            if hasattr(req, "layered_arrived_s"):
                break
            req.layered_arrived_s = now_s

    def _is_first_come(self) -> bool:
        args = self._scheduler.server_args
        return bool(args.schedule_policy == "fcfs" and not args.enable_priority_scheduling)
