"""From raw times to figures, and how they are shown: table, legend, last line, picture.

Of one repetition, with t0 the sending of the long prompt and t1 its first token:

    TTFT        t1 - t0
    gaps        pauses of the running streams that overlap [t0, t1] (`bench.beside`)
    worst gap   the longest of them
    median gap  their median, all running streams taken together
    tokens/s    tokens of all running streams that arrived in (t0, T], divided by T - t0; T ends the last gap
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib
from rich.table import Table

matplotlib.use("Agg")

from matplotlib import pyplot as plt

from sglang_layered.errors import QuickstartError
from sglang_layered_lab.bench.beside import pauses_beside
from sglang_layered_lab.bench.plots import COLOURS, INK, MARK, QUIET
from sglang_layered_lab.bench.record import BenchRecord, Repetition
from sglang_layered_lab.bench.trace import RequestTrace

LEAD_S = 0.12  # share of the drawn time that lies before the long prompt was sent
COLUMNS = {  # of the table: metric, heading, factor from its unit, format
    "ttft_s": ("TTFT (s)", 1.0, ".2f"),
    "worst_gap_s": ("worst gap (ms)", 1000.0, ".0f"),
    "median_gap_s": ("median gap (ms)", 1000.0, ".0f"),
    "tokens_per_s": ("tokens/s", 1.0, ".1f"),
}
RATIOS = (("TTFT", "ttft_s", "whole"), ("TTFT", "ttft_s", "mixed"), ("worst gap", "worst_gap_s", "mixed"))


@dataclass(frozen=True, slots=True)
class ModeRun:
    """One server's part of a quickstart."""

    mode: str
    title: str
    command: tuple[str, ...]
    startup_s: float  # from the process's start until it answered
    peak_memory_bytes: int  # greatest sampled memory of the server's process tree
    record: BenchRecord

    def median_of(self, metric: str) -> float:
        """A figure's median over the repetitions."""
        return median(measure(each)[metric] for each in self.record.repetitions)

    def to_json(self) -> dict[str, Any]:
        """JSON values: the bench record, and what it does not hold. `metrics` are for the reader's eye."""
        return self.record.to_json() | {
            "mode": self.mode,
            "command": list(self.command),
            "startup_s": round(self.startup_s, 3),
            "peak_memory_bytes": self.peak_memory_bytes,
            "metrics": {metric: {"median": self.median_of(metric)} for metric in COLUMNS},
        }

    def typical(self) -> Repetition:
        """The repetition with the median TTFT (the lower one of two), to draw."""
        inorder = sorted(self.record.repetitions, key=lambda each: measure(each)["ttft_s"])
        return inorder[(len(inorder) - 1) // 2]


def measure(repetition: Repetition) -> dict[str, float]:
    """The figures of one repetition, named as in `COLUMNS`.

    Raises:
        QuickstartError: a request failed, or no running stream was seen before and after the long prompt.
    """
    [long] = repetition.traces
    if long.error is not None or not long.arrivals:
        raise QuickstartError(f"the server failed a request: {long.error or 'it gave no token'}")
    pauses_s = pauses_beside([long], repetition.background)
    if not len(pauses_s):
        raise QuickstartError("no running stream had a token before and after the long prompt was sent")
    gaps_s, end_s = pauses_s[:, 1] - pauses_s[:, 0], float(pauses_s[:, 1].max())
    tokens = sum(_tokens_at(each, end_s) - _tokens_at(each, long.sent_s) for each in repetition.background)
    return {
        "ttft_s": long.arrivals[0].time_s - long.sent_s,
        "worst_gap_s": float(gaps_s.max()),
        "median_gap_s": float(median(gaps_s)),
        "tokens_per_s": tokens / (end_s - long.sent_s),
    }


def _tokens_at(stream: RequestTrace, time_s: float) -> int:
    return max((each.num_tokens for each in stream.arrivals if each.time_s <= time_s), default=0)


def table(runs: Sequence[ModeRun]) -> Table:
    """One row per mode: median over the repetitions, least to greatest below it."""
    record = runs[0].record
    shown = Table(
        title=title_of(record),
        caption=f"TTFT of the prompt; gaps and tokens/s of the conversations until its first token; "
        f"median and min - max of {len(record.repetitions)}",
    )
    shown.add_column("mode", no_wrap=True)
    for heading, *_ in COLUMNS.values():
        shown.add_column(heading, justify="right", no_wrap=True)
    for run in runs:
        seen = [measure(each) for each in run.record.repetitions]
        shown.add_row(run.mode, *(_cell([each[metric] for each in seen], metric) for metric in COLUMNS))
    return shown


def _cell(values: Sequence[float], metric: str) -> str:
    _, factor, form = COLUMNS[metric]
    middle, low, high = (format(factor * value, form) for value in (median(values), min(values), max(values)))
    return f"{middle}\n[dim]{low} - {high}[/dim]"


def title_of(record: BenchRecord) -> str:
    """What was played."""
    repetition = record.repetitions[0]
    [long], num_running = repetition.traces, len(repetition.background)
    return f"A {long.prompt_tokens}-token prompt beside {num_running} running conversations"


def last_line(runs: Sequence[ModeRun]) -> str:
    """`QUICKSTART OK` and the ratios of medians that the modes at hand allow."""
    by_mode: Mapping[str, ModeRun] = {run.mode: run for run in runs}
    words = ["QUICKSTART OK"]
    for name, metric, other in RATIOS:
        if "layered" in by_mode and other in by_mode:
            ratio = by_mode["layered"].median_of(metric) / by_mode[other].median_of(metric)
            words.append(f"{name} layered/{other} {ratio:.2f}")
    return "  ".join(words)


def staircase(repetition: Repetition, start_s: float, end_s: float) -> tuple[list[float], list[int]]:
    """Tokens of all running streams since `start_s`, as corners of a staircase.

    It ends when the client ended the first of the streams: a flat line after that would look like a pause.
    """
    streams = repetition.background
    end_s = min(end_s, *(stream.arrivals[-1].time_s for stream in streams))
    base = sum(_tokens_at(stream, start_s) for stream in streams)
    times_s = sorted({each.time_s for stream in streams for each in stream.arrivals})
    corners = [start_s, *(each for each in times_s if start_s < each <= end_s), end_s]
    return corners, [sum(_tokens_at(stream, each) for stream in streams) - base for each in corners]


def draw(runs: Sequence[ModeRun], path: Path) -> None:
    """Write the picture as PNG: tokens of the running conversations over time, one panel a mode."""
    last_ttft_s = max(measure(run.typical())["ttft_s"] for run in runs)
    figure, axes = plt.subplots(
        len(runs), 1, sharex=True, squeeze=False, figsize=(8.5, 1.2 + 1.75 * len(runs)), layout="constrained"
    )
    try:
        for axis, run in zip(axes[:, 0], runs, strict=True):
            _panel(axis, run, -LEAD_S * last_ttft_s, 1.1 * last_ttft_s)
        top = max(axis.get_ylim()[1] for axis in axes[:, 0])
        for axis in axes[:, 0]:
            axis.set_ylim(0, top)
            axis.set_xlim(-LEAD_S * last_ttft_s, 1.1 * last_ttft_s)
        figure.suptitle(title_of(runs[0].record), fontsize=11.5, color=INK, x=0.01, ha="left")
        figure.supylabel("tokens, all conversations together", fontsize=9, color=INK)
        axes[-1, 0].set_xlabel(
            "seconds since the long prompt was sent (dotted)   ·   red line: its first token   ·   "
            "red band: longest pause of a conversation",
            fontsize=8.5,
            color=INK,
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=160)
    finally:
        plt.close(figure)


def _panel(axis: Any, run: ModeRun, start_s: float, end_s: float) -> None:
    repetition, colour = run.typical(), COLOURS.get(run.mode, INK)
    seen, zero_s = measure(repetition), repetition.traces[0].sent_s
    corners, totals = staircase(repetition, start_s + zero_s, end_s + zero_s)
    times_s = [each - zero_s for each in corners]
    axis.fill_between(times_s, totals, step="post", color=colour, alpha=0.18, linewidth=0)
    axis.step(times_s, totals, where="post", color=colour, linewidth=1.8)
    pauses_s = pauses_beside(repetition.traces, repetition.background) - zero_s
    worst_start_s, worst_end_s = max(pauses_s, key=lambda each: float(each[1] - each[0]))
    axis.axvspan(max(worst_start_s, start_s), min(worst_end_s, end_s), color=MARK, alpha=0.08, linewidth=0)
    axis.axvline(0, color=QUIET, linewidth=1, linestyle=":")
    axis.axvline(seen["ttft_s"], color=MARK, linewidth=1.4)
    axis.set_title(run.title, loc="left", fontsize=10, color=INK, fontweight="bold")
    says = f"first token after {seen['ttft_s']:.2f} s · worst gap {1000 * seen['worst_gap_s']:.0f} ms"
    axis.set_title(says, loc="right", fontsize=9, color=MARK)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8, colors=INK)
    axis.grid(axis="y", color="#e6e6e6", linewidth=0.6)
    axis.set_axisbelow(True)
