"""Policy `fair-batching`: a request that is ahead of its deadline line gives its time to prompts.

Source: FairBatching, arXiv 2510.14392: token j of a request is due at arrival + TTFT + j x TPOT. A gap may be
long where the tokens before came early, so decodes need not go first in every step.
"""

from dataclasses import dataclass
from typing import ClassVar

from sglang_layered.core.questions import Running, Seconds
from sglang_layered.policies.sparing import SparingPolicy


@dataclass
class FairBatchingPolicy(SparingPolicy):
    """Deadlines by the line; `--slo-tbt-ms` is then a limit on the mean and not on every gap."""

    keeps_gaps: ClassVar[bool] = False

    def __str__(self) -> str:
        return f"fair-batching({super().__str__()})"

    def due_s(self, running: Running) -> Seconds:
        """By the line, in seconds from now; of the latest token, which may not be out yet."""
        due_s: Seconds = running.ttft_s + (running.output_tokens - 1) * running.tbt_s - running.age_s
        return due_s
