"""Coverage: the part of a layer's experts that a set of rows activates. Pure.

Rows of one prompt resemble each other and share experts, rows of a decode batch come from many requests; so
tables tell the two apart, and take what they activate as independent where a layer has both.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from sglang_layered.auto.step_times import coverage
from sglang_layered.core.pacing import ModelSizes
from sglang_layered_lab.cost.shape import ModelShape

Coverage = Callable[[ModelShape, int, int], float]  # model, prompt rows, decode rows -> part of the experts
Points = tuple[tuple[float, float], ...]  # (rows, coverage), rows rising


def uniform_coverage(model: ModelShape, prompt_rows: int, decode_rows: int) -> float:
    """Every row picks its experts by lot, 1 - (1 - k/E)^rows; what dummy weights come close to."""
    sizes = ModelSizes(model.num_layers, model.num_experts, model.num_experts_per_token)
    return coverage(sizes, prompt_rows + decode_rows)


@dataclass(frozen=True, slots=True)
class CoverageTable:
    """What was measured: linear in the logarithm of the rows, k/E for one row, constant beyond the last."""

    prompt: Points
    decode: Points

    def __call__(self, model: ModelShape, prompt_rows: int, decode_rows: int) -> float:
        """Coverage of a layer with these rows."""
        one_row = (1.0, model.num_experts_per_token / model.num_experts)
        untouched = 1.0
        for points, num_rows in ((self.prompt, prompt_rows), (self.decode, decode_rows)):
            if num_rows:
                rest = tuple(point for point in points if point[0] > 1)
                untouched *= 1.0 - _interpolate((one_row, *rest), num_rows)
        return 1.0 - untouched


def _interpolate(points: Points, num_rows: float) -> float:
    for (low, before), (high, after) in pairwise(points):
        if num_rows <= high:
            return before + (after - before) * math.log(num_rows / low) / math.log(high / low)
    return points[-1][1]


# Real text, Qwen3-30B-A3B. Decode 16 to 128 are the paper's Table 1, prompts 512 to 8192 the bars of its
# Figure 2 as read from the picture; what lies outside is our own inter- and extrapolation.
PAPER_COVERAGE = CoverageTable(
    decode=(
        (2, 0.12),
        (4, 0.21),
        (8, 0.34),
        (16, 0.47),
        (32, 0.55),
        (64, 0.69),
        (128, 0.863),
        (256, 0.95),
    ),
    prompt=(
        (64, 0.52),
        (128, 0.62),
        (256, 0.73),
        (512, 0.82),
        (1024, 0.88),
        (2048, 0.923),
        (4096, 0.955),
        (8192, 0.985),
    ),
)
COVERAGES: dict[str, Coverage] = {"uniform": uniform_coverage, "paper": PAPER_COVERAGE}
