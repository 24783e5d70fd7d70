"""Asks a replayed policy three of the four questions, within the scheduler's bounds.

Not `preempt`: a replay has one cohort in flight. A trace tells no limits and no priorities of requests.
"""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from sglang_layered.core import bounds
from sglang_layered.core.capability import QUESTIONS, Capability, capabilities_of
from sglang_layered.core.pacing import StepPolicy
from sglang_layered.core.policy import GroupPolicy
from sglang_layered.core.questions import Decode, Queue, Running, SloClass, Snapshot, Waiting

if TYPE_CHECKING:
    from sglang_layered_lab.traces import replay

    Prompt = tuple[replay.Request, int]  # with tokens done

NAP_S = 1e-3  # between two questions with nothing to run


class Asked:
    """The questions of one replay, and what its requests have waited for."""

    def __init__(self, policy: GroupPolicy, limits: SloClass, max_tokens: int) -> None:
        can = capabilities_of(policy)
        self.is_on = bool(can & QUESTIONS.keys())
        self._policy, self._can = cast("StepPolicy", policy), can
        self._limits, self._max_tokens = limits, max_tokens
        self._passed: Counter[str] = Counter()
        self._sat_out: Counter[str] = Counter()
        self._held_since_s: float | None = None

    def admissible(
        self, prompts: "Sequence[Prompt]", running: "Sequence[replay.Running]", now_s: float
    ) -> "list[Prompt]":
        """Prompts that may be admitted, in order; none while they are held."""
        begun, new = [each for each in prompts if each[1]], [each for each in prompts if not each[1]]
        seen = new[: bounds.MOST_LOOKED_AT]
        rows = Queue.of([self._waiting(request, now_s) for request, _ in seen])
        view = Snapshot(rows, self._running(running, now_s), (), len(new), self._max_tokens)
        shown = new
        if Capability.ORDERS_QUEUE in self._can and seen:
            shown = [seen[index] for index in bounds.admitted_in(self._policy.order(view), rows)]
        if Capability.HOLDS_PROMPTS in self._can and shown and not begun:
            since_s = now_s if self._held_since_s is None else self._held_since_s
            if bounds.held_for(self._policy.hold(view), now_s - since_s) > 0:
                self._held_since_s = since_s
                return []
        left_out = {request.request_id for request, _ in seen} - {request.request_id for request, _ in shown}
        self._passed.update(left_out)
        return [*begun, *shown]

    def admitted(self, waiting: "Sequence[Prompt]") -> None:
        """A cohort was, and these wait on."""
        self._held_since_s = None
        self._passed.update(request.request_id for request, done in waiting if not done)

    def decoding(
        self, running: "Sequence[replay.Running]", now_s: float, num_waiting: int
    ) -> "Sequence[replay.Running]":
        """Who decodes in a step that computes prompts."""
        if Capability.CHOOSES_DECODES not in self._can or not running:
            return running
        columns = self._running(running, now_s)
        view = Snapshot((), columns, (), num_waiting, self._max_tokens)
        keep = bounds.decoding(self._policy.decode_rows(view), columns)
        decoding = running if keep is None else [running[index] for index in keep]
        names = {each.request.request_id for each in decoding}
        self._sat_out = Counter(
            {
                name: self._sat_out[name] + 1
                for each in running
                if (name := each.request.request_id) not in names
            }
        )
        return decoding

    def all_decoded(self) -> None:
        """A step without prompts."""
        self._sat_out.clear()

    def _waiting(self, request: "replay.Request", now_s: float) -> Waiting:
        passed = self._passed[request.request_id]
        waited_s = now_s - request.arrived_s
        return Waiting(request.prompt_tokens, request.prefix_tokens, waited_s, self._limits, passed=passed)

    def _running(self, running: "Sequence[replay.Running]", now_s: float) -> Running:
        return Running.of([self._decode(each, now_s) for each in running])

    def _decode(self, each: "replay.Running", now_s: float) -> Decode:
        request = each.request
        since_s = now_s - (request.tokens_s[-1] if request.tokens_s else request.arrived_s)
        made = round(request.output_tokens - each.left)
        age_s, sat_out = now_s - request.arrived_s, self._sat_out[request.request_id]
        return Decode(each.context, made, age_s, since_s, self._limits, 0, sat_out)
