"""Policy `staggered`: prompts wait a little for others to share their cohort.

Source: Staggered Batch Scheduling, arXiv 2512.16134: requests are held for a short adaptive time to fill
batches, and are spread over data-parallel units by load. The first half is this policy; the second is a
router's, which `sglang-layered simulate` has as `staggered`.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sglang_layered.auto.policy import AutoPolicy
from sglang_layered.core.capability import Capability
from sglang_layered.core.questions import Queue, Snapshot

MOST_OF_TTFT = 0.25  # part of the limit on the first token that may pass holding
OF_COHORT = 0.5  # part of the time that the cohort is predicted to take alone


@dataclass
class StaggeredPolicy(AutoPolicy):
    """Holds until more would not fit, or until holding costs more than a fuller cohort may save."""

    can: ClassVar[frozenset[Capability]] = AutoPolicy.can | {Capability.HOLDS_PROMPTS}

    def __str__(self) -> str:
        return f"staggered({super().__str__()})"

    def hold(self, view: Snapshot) -> float:
        """Seconds to go on waiting: less the longer the oldest has waited, none for a full cohort."""
        prompts = Queue.of(view.waiting)
        tokens = int(prompts.tokens.sum())
        if tokens + tokens / len(prompts) > view.max_tokens:
            return 0.0
        window_s = OF_COHORT * self.prompt_s(tokens)
        may_wait_s = np.minimum(MOST_OF_TTFT * prompts.ttft_s, window_s) - prompts.waited_s
        return max(float(may_wait_s.min()), 0.0)
