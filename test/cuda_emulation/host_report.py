"""What the measured host time of steps says: medians by part, and layered steps beside SGLang's own."""

from __future__ import annotations

import statistics
from typing import Any

from rich.table import Table

from cpu_clock import Step

PARTS = ("layers", "launching", "planning", "results", "scheduling")


def compared(rounds: list[dict[str, list[Step]]]) -> dict[str, float]:
    """A layered step beside SGLang's own of the same round, which other work on the machine slows as much.

    Median over the rounds of the difference of medians to a decode step, and of their ratio to a mixed chunk.
    """
    middle = [{kind: statistics.median(map(_sum, steps)) for kind, steps in turn.items()} for turn in rounds]
    found = {
        "over_decode_ms": statistics.median(turn["layered step"] - turn["stock decode"] for turn in middle)
    }
    if "stock mixed chunk" in middle[0]:
        ratios = (turn["layered step"] / turn["stock mixed chunk"] for turn in middle)
        found["of_mixed_chunk"] = statistics.median(ratios)
    return found


def _sum(step: Step) -> float:
    return sum(step[part] for part in PARTS)


def summary(kind: str, steps: list[Step]) -> dict[str, Any]:
    """Medians of the parts, quartiles of the sum, over these steps."""
    sums = [*map(_sum, steps)]
    low, middle, high = statistics.quantiles(sums, n=4)
    parts = {part: statistics.median(step[part] for step in steps) for part in PARTS}
    launches = statistics.median(step["launches"] for step in steps)
    about = {"kind": kind, "steps": len(steps), "q1_ms": low, "median_ms": middle, "q3_ms": high}
    return about | parts | {"launches": launches, "sums_ms": [round(value, 4) for value in sums]}


def table_of(found: list[dict[str, Any]]) -> Table:
    """A line for each kind of step."""
    table = Table("groups", "by", "granularity", "step", "launches", "ms", *PARTS, "over decode", "of mixed")
    for row in found:
        way = "graphs" if row["by_graphs"] else "kernels"
        cells = [str(row["groups"]), way, str(row["granularity"] or f"{row['graphs']} graphs"), row["kind"]]
        times = [f"{row[name]:.2f}" for name in ("median_ms", *PARTS)]
        times += [f"{row[name]:.2f}" if name in row else "" for name in ("over_decode_ms", "of_mixed_chunk")]
        table.add_row(*cells, f"{row['launches']:.0f}", *times)
    return table
