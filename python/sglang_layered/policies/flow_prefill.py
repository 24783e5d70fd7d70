"""Policy `flow-prefill`: a prompt whose deadline is near goes before a cohort that can wait.

Source: FlowPrefill, arXiv 2602.16603: prefills are preempted at operator edges, and that is decided only when
a request comes or is done, so that fine edges cost nothing while nothing happens. Here the edges are those of
layer groups; the deadlines are those of a request's own time to first token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from sglang_layered.auto.policy import AutoPolicy
from sglang_layered.auto.step_times import amounts
from sglang_layered.core.capability import Capability
from sglang_layered.core.pacing import StepLoad
from sglang_layered.core.questions import Flying, Snapshot, Waiting

SHORT, LONG = 256, 4096  # prompt tokens between whose times others are interpolated


@dataclass
class FlowPrefillPolicy(AutoPolicy):
    """Earliest deadline first among those that can still be met; needs `--layered-max-parked` to preempt."""

    can: ClassVar[frozenset[Capability]] = AutoPolicy.can | {
        Capability.ORDERS_QUEUE,
        Capability.PREEMPTS_COHORTS,
    }
    _last_seen: tuple[int, int, int] = (0, 0, 0)  # prompts that wait, cohorts in flight, layers done

    def __str__(self) -> str:
        return f"flow-prefill({super().__str__()})"

    def order(self, view: Snapshot) -> Sequence[int]:
        """The most urgent first, and with it only those that do not make anybody in the cohort late."""
        base_s, token_s = self._prompt_line(view)
        in_order = sorted(
            range(len(view.waiting)), key=lambda index: _urgency(view.waiting[index], base_s, token_s)
        )
        chosen: list[int] = []
        spent_s, left_s = base_s, float("inf")
        for index in in_order:
            prompt = view.waiting[index]
            spent_s += prompt.tokens * token_s
            due_s = prompt.slo.ttft_s - prompt.waited_s
            if chosen and spent_s > left_s:
                break
            chosen.append(index)
            if due_s >= spent_s:  # who is late anyway hurries nobody
                left_s = min(left_s, due_s)
        return chosen

    def preempt(self, view: Snapshot) -> Sequence[int] | None:
        """Those that are due before the cohort in flight and can be in time, as long as it can wait."""
        flight = view.flying[-1]
        (num_waiting, num_flying, done_layers), now = self._last_seen, (view.num_waiting, len(view.flying))
        self._last_seen = (*now, flight.done_layers)
        if now == (num_waiting, num_flying) and flight.done_layers >= done_layers:
            return None  # nobody has come and nothing is done since the last decision
        base_s, token_s = self._prompt_line(view)
        rest_s = self._rest_s(flight, base_s, token_s, view)
        spare_s = flight.slo.ttft_s - flight.waited_s - rest_s  # below 0: it is late whatever is done
        chosen: list[int] = []
        spent_s, left_s = base_s, float("inf")
        for index in sorted(range(len(view.waiting)), key=lambda each: _due_s(view.waiting[each])):
            prompt = view.waiting[index]
            due_s, own_s = _due_s(prompt), prompt.tokens * token_s
            if prompt.priority < flight.priority or due_s >= flight.slo.ttft_s - flight.waited_s:
                continue  # its turn is after the cohort's
            if spent_s + own_s > min(due_s, left_s) or 0 <= spare_s < spent_s + own_s:
                continue  # too late for it, or it would make another one late
            spent_s, left_s = spent_s + own_s, min(left_s, due_s)
            chosen.append(index)
        return chosen or None

    def _rest_s(self, flight: Flying, base_s: float, token_s: float, view: Snapshot) -> float:
        """Seconds until the cohort is done: of its layers, and of the decodes beside each group."""
        part = 1 - flight.done_layers / flight.num_layers
        groups = max(-(-flight.tokens // self.group_tokens), 1)
        return part * (base_s + flight.tokens * token_s) + max(part * groups, 1) * self._decode_s(view)

    def _prompt_line(self, view: Snapshot) -> tuple[float, float]:
        """Seconds of any prompt beside those who decode, and of each of its tokens."""
        short_s, long_s = self.prompt_s(SHORT), self.prompt_s(LONG)
        token_s = max((long_s - short_s) / (LONG - SHORT), 0.0)
        return max(short_s - SHORT * token_s, 0.0) + self._decode_s(view), token_s

    def _decode_s(self, view: Snapshot) -> float:
        running = view.running
        if not len(running):
            return 0.0
        load = StepLoad(len(running), int(running.context_tokens.sum()))
        return self.times.predict(amounts(self.sizes, load))


def _due_s(prompt: Waiting) -> float:
    """Seconds until its first token is due."""
    return prompt.slo.ttft_s - prompt.waited_s


def _urgency(prompt: Waiting, base_s: float, token_s: float) -> tuple[int, bool, float]:
    """Higher priorities first, then those that can be in time by their deadlines, then the oldest."""
    due_s = _due_s(prompt)
    is_late = due_s < base_s + prompt.tokens * token_s
    return -prompt.priority, is_late, -prompt.waited_s if is_late or due_s == float("inf") else due_s
