r"""A policy that answers all four questions: the nearest deadline first, and who is ahead of its own waits.

PYTHONPATH=examples .venv/bin/python -m sglang.launch_server --model-path MODEL --prefill-mode layered \
    --layered-policy policy_by_deadline:ByDeadline --layered-max-parked 1 --slo-ttft-ms 2000 --slo-tbt-ms 100

A request may name limits of its own: "custom_params": {"slo_ttft_ms": 300} in its sampling parameters.
"""

from collections.abc import Sequence

import numpy as np

from sglang_layered.hooks import Capability, Flying, LayerGroupPlan, SchedulerView, Snapshot, Waiting

GROUP_TOKENS = 512
FULL, HOLD_S = 4, 0.02  # prompts together are worth so long a wait
AHEAD = 0.5  # of the limit between tokens


class ByDeadline:
    """Knows no step times: of two prompts the one that must be there sooner goes first."""

    can = frozenset(
        {
            Capability.ORDERS_QUEUE,
            Capability.HOLDS_PROMPTS,
            Capability.PREEMPTS_COHORTS,
            Capability.CHOOSES_DECODES,
        }
    )

    def plan(self, view: SchedulerView) -> LayerGroupPlan:
        """One group per 512 tokens."""
        return LayerGroupPlan.even(
            view.num_layers, min(max(view.prompt_tokens // GROUP_TOKENS, 1), view.num_layers)
        )

    def order(self, view: Snapshot) -> Sequence[int]:
        """The most important first, and of those the one that is due first."""
        return sorted(range(len(view.waiting)), key=lambda index: _urgency(view.waiting[index]))

    def hold(self, view: Snapshot) -> float:
        """Beside running requests a few prompts wait for more, unless one of them is due soon."""
        is_due = any(_left_s(prompt) < 2 * HOLD_S for prompt in view.waiting)
        return 0.0 if is_due or len(view.waiting) >= FULL or not len(view.running) else HOLD_S

    def preempt(self, view: Snapshot) -> Sequence[int] | None:
        """Whoever is more urgent than the cohort in flight, if it has less to compute."""
        flying = view.flying[-1]
        return [
            index
            for index in self.order(view)
            if _urgency(view.waiting[index]) < _urgency(flying) and view.waiting[index].tokens < flying.tokens
        ]

    def decode_rows(self, view: Snapshot) -> Sequence[int] | None:
        """All but those whose last token came less than half their limit ago."""
        running = view.running
        is_ahead = np.isfinite(running.tbt_s) & (running.since_token_s < AHEAD * running.tbt_s)
        rows: list[int] = np.flatnonzero(~is_ahead).tolist()
        return rows


def _left_s(prompt: Waiting | Flying) -> float:
    return prompt.slo.ttft_s - prompt.waited_s


def _urgency(prompt: Waiting | Flying) -> tuple[int, float]:
    return -prompt.priority, _left_s(prompt)
