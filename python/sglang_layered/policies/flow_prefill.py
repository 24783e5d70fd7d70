"""Policy `flow-prefill`: a prompt whose deadline is near goes before a cohort that can wait.

Source: FlowPrefill, arXiv 2602.16603: prefills are preempted at operator edges, and that is decided only when
a request comes or is done, so that fine edges cost nothing while nothing happens. Here the edges are those of
layer groups; the deadlines are those of a request's own time to first token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from sglang_layered.auto.policy import AutoPolicy
from sglang_layered.core.capability import Capability
from sglang_layered.core.questions import Flying, Numbers, Queue, Running, Seconds, Snapshot

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

    def order(self, view: Snapshot) -> Numbers:
        """The most urgent first, and with it only those that do not make anybody in the cohort late."""
        base_s, token_s = self._prompt_line(self._decode_s(view.running))
        prompts = Queue.of(view.waiting)
        due_s, own_s = prompts.ttft_s - prompts.waited_s, prompts.tokens * token_s
        in_order = _most_urgent_first(prompts, due_s, is_late=due_s < base_s + own_s)
        due_s, done_s = due_s.take(in_order), base_s + own_s.take(in_order).cumsum()
        left_s = np.minimum.accumulate(np.where(due_s >= done_s, due_s, inf))  # who is late hurries nobody
        [makes_late] = (done_s[1:] > left_s[:-1]).nonzero()
        return in_order[: 1 + int(makes_late[0])] if len(makes_late) else in_order

    def preempt(self, view: Snapshot) -> Sequence[int] | None:
        """Those that are due before the cohort in flight and can be in time, as long as it can wait."""
        flight = view.flying[-1]
        (num_waiting, num_flying, done_layers), now = self._last_seen, (view.num_waiting, len(view.flying))
        self._last_seen = (*now, flight.done_layers)
        if now == (num_waiting, num_flying) and flight.done_layers >= done_layers:
            return None  # nobody has come and nothing is done since the last decision
        decode_s = self._decode_s(view.running)
        base_s, token_s = self._prompt_line(decode_s)
        rest_s = self._rest_s(flight, base_s, token_s, decode_s)
        spare_s = flight.slo.ttft_s - flight.waited_s - rest_s  # below 0: it is late whatever is done
        prompts = Queue.of(view.waiting)
        due_s, own_s = prompts.ttft_s - prompts.waited_s, prompts.tokens * token_s
        may_s = np.minimum(due_s, spare_s if spare_s >= 0 else inf)  # until it is done
        is_before = (prompts.priority >= flight.priority) & (due_s < flight.slo.ttft_s - flight.waited_s)
        [found] = (
            is_before & (base_s + own_s <= may_s)
        ).nonzero()  # the others are too late, or make it late
        found = found[due_s[found].argsort(kind="stable")]
        chosen: list[int] = []
        spent_s, left_s = base_s, inf
        for index, each_s, most_s in zip(
            found.tolist(), own_s[found].tolist(), may_s[found].tolist(), strict=True
        ):
            if spent_s + each_s <= min(most_s, left_s):
                spent_s, left_s = spent_s + each_s, min(left_s, most_s)
                chosen.append(index)
        return chosen or None

    def _rest_s(self, flight: Flying, base_s: float, token_s: float, decode_s: float) -> float:
        """Seconds until the cohort is done: of its layers, and of the decodes beside each group."""
        part = 1 - flight.done_layers / flight.num_layers
        groups = max(-(-flight.tokens // self.group_tokens), 1)
        return part * (base_s + flight.tokens * token_s) + max(part * groups, 1) * decode_s

    def _prompt_line(self, decode_s: float) -> tuple[float, float]:
        """Seconds of any prompt beside those who decode, and of each of its tokens."""
        short_s, long_s = self.prompt_s(SHORT), self.prompt_s(LONG)
        token_s = max((long_s - short_s) / (LONG - SHORT), 0.0)
        return max(short_s - SHORT * token_s, 0.0) + decode_s, token_s

    def _decode_s(self, running: Running) -> float:
        return self.decode_s(running) if len(running) else 0.0


def _most_urgent_first(prompts: Queue, due_s: Seconds, is_late: npt.NDArray[np.bool_]) -> Numbers:
    """Higher priorities first, then those that can be in time by their deadlines, then the oldest."""
    by_age = is_late | (due_s == inf)
    order: Numbers = np.lexsort((np.where(by_age, -prompts.waited_s, due_s), is_late, -prompts.priority))
    return order
