"""Policy `near-late`: who is about to miss a token decodes, the others make room for the shortest prompts.

Source: Optimal Scheduling Algorithms for LLM Inference, arXiv 2508.01002. Its scheduler SLAI decodes first
those near their deadline between tokens and orders prompts by their known length; its scheduler RAD fills
whole tiles of the matrix products, so that no row of one is computed for nothing.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sglang_layered.core.capability import Capability
from sglang_layered.core.pacing import QueueView
from sglang_layered.core.questions import Numbers, Queue, Running, Seconds, Snapshot
from sglang_layered.policies.sparing import SparingPolicy

TILE = 128  # rows of a tile of the products of common kernels


@dataclass
class NearLatePolicy(SparingPolicy):
    """Deadlines by the limit between two tokens, the shortest prompt first, cohorts of whole tiles."""

    can: ClassVar[frozenset[Capability]] = SparingPolicy.can | {Capability.ORDERS_QUEUE}

    def __str__(self) -> str:
        return f"near-late({super().__str__()})"

    def due_s(self, running: Running) -> Seconds:
        """After the limit since the last token, in seconds from now."""
        due_s: Seconds = running.tbt_s - running.since_token_s
        return due_s

    def order(self, view: Snapshot) -> Numbers:
        """Fewest tokens to compute first, of equal ones the oldest."""
        prompts = Queue.of(view.waiting)
        order: Numbers = np.lexsort((prompts.tokens, -prompts.priority))
        return order

    def cohort_tokens(self, view: QueueView) -> int:
        """As many as else, down to whole tiles where prompts are cut anyway."""
        tokens = super().cohort_tokens(view)
        return tokens // TILE * TILE if TILE < tokens < sum(view.prompt_lens) else tokens
