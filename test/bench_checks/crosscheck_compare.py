"""Do other tools say what we say? Ratios of their figures to ours over rounds, with a verdict. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from bench_checks.crosscheck_reading import Reading
from rich.table import Table

from sglang_layered_lab.bench.intervals import Interval, paired_ratio

LIMIT = 0.05
METRICS: Mapping[str, str] = {
    "output_tokens_per_s": "output tokens/s",
    "ttft_ms": "TTFT, median, ms",
    "itl_ms": "ITL, median, ms",
}
Verdict = Literal["agrees", "differs"]


@dataclass(frozen=True, slots=True)
class Agreement:
    """One metric of one tool beside ours: medians over the rounds, and theirs / ours over pairs of a round.

    It agrees when the ratio is within the limit of 1. `is_sure`: no end of the ratio's interval says
    otherwise; where that is not so, take more rounds or a quieter machine.
    """

    tool: str
    metric: str
    ours: float
    theirs: float
    ratio: Interval
    limit: float

    @property
    def verdict(self) -> Verdict:
        """Within the limit, or not."""
        return "agrees" if _within(self.ratio.value, self.limit) else "differs"

    @property
    def is_sure(self) -> bool:
        """Does the whole interval lie on the verdict's side of the limit?"""
        if self.verdict == "agrees":
            return _within(self.ratio.low, self.limit) and _within(self.ratio.high, self.limit)
        return self.ratio.low > 1 + self.limit or self.ratio.high < 1 - self.limit

    def to_json(self) -> dict[str, Any]:
        """JSON values with the verdict."""
        return asdict(self) | {"verdict": self.verdict, "is_sure": self.is_sure}


def agreements(
    tool: str, ours: Sequence[Reading], theirs: Sequence[Reading], limit: float = LIMIT
) -> Iterator[Agreement]:
    """Compare each metric; readings at one place are of one round.

    Raises:
        BenchError: the rounds do not pair up, or there are fewer than two.
    """
    for metric in METRICS:
        mine, other = ([float(getattr(each, metric)) for each in side] for side in (ours, theirs))
        yield Agreement(
            tool, metric, float(np.median(mine)), float(np.median(other)), paired_ratio(other, mine), limit
        )


def table(found: Sequence[Agreement], title: str) -> Table:
    """One row an agreement."""
    shown = Table("tool", "metric", title=title, title_justify="left")
    for column in ("ours", "theirs", "theirs / ours", "95 %"):
        shown.add_column(column, justify="right")
    shown.add_column(f"within {100 * max(each.limit for each in found):g} %")
    for each in found:
        shown.add_row(
            each.tool,
            METRICS[each.metric],
            f"{each.ours:.2f}",
            f"{each.theirs:.2f}",
            f"{each.ratio.value:.3f}",
            f"{each.ratio.low:.3f} to {each.ratio.high:.3f}",
            each.verdict if each.is_sure else f"{each.verdict}, not sure",
        )
    return shown


def _within(ratio: float, limit: float) -> bool:
    return 1 - limit <= ratio <= 1 + limit
