"""Draws a record: tokens of the running conversations over time, one panel per mode. Computes no metric."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt

from sglang_layered_lab.bench.plots import COLOURS, INK, MARK, QUIET
from sglang_layered_lab.quickstart.metrics import Repetition, typical
from sglang_layered_lab.quickstart.record import ModeRun, Record
from sglang_layered_lab.quickstart.scenario import MODE_TITLES

LEAD_S = 0.12  # share of the drawn time that lies before the long prompt was sent


def staircase(repetition: Repetition, start_s: float, end_s: float) -> tuple[list[float], list[int]]:
    """Tokens of all running streams since `start_s`, as corners of a staircase.

    It ends when the client ended the first of the streams: a flat line after that would look like a pause.
    """
    end_s = min(end_s, *(stream[-1].time_s for stream in repetition.running))
    counts = {index: 0 for index in range(len(repetition.running))}
    events = sorted(
        (arrival.time_s, index, arrival.num_tokens)
        for index, stream in enumerate(repetition.running)
        for arrival in stream
        if arrival.time_s <= end_s
    )
    times_s, totals = [start_s], [0]
    base = 0
    for time_s, index, num_tokens in events:
        counts[index] = num_tokens
        if time_s < start_s:
            base = sum(counts.values())
            continue
        times_s.append(time_s)
        totals.append(sum(counts.values()) - base)
    return [*times_s, end_s], [*totals, totals[-1]]


def draw(record: Record, path: Path) -> None:
    """Write the picture of a record as PNG."""
    shown = [(run, typical(run.repetitions)) for run in record.runs]
    last_ttft_s = max(repetition.ttft_s for _, repetition in shown)
    start_s, end_s = -LEAD_S * last_ttft_s, 1.1 * last_ttft_s
    figure, axes = plt.subplots(
        len(shown),
        1,
        sharex=True,
        squeeze=False,
        figsize=(8.5, 1.2 + 1.75 * len(shown)),
        layout="constrained",
    )
    try:
        for axis, (run, repetition) in zip(axes[:, 0], shown, strict=True):
            _panel(axis, run, repetition, start_s, end_s)
        top = max(axis.get_ylim()[1] for axis in axes[:, 0])
        for axis in axes[:, 0]:
            axis.set_ylim(0, top)
            axis.set_xlim(start_s, end_s)
        _label(figure, axes[-1, 0], record)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=160)
    finally:
        plt.close(figure)


def _panel(axis: Any, run: ModeRun, repetition: Repetition, start_s: float, end_s: float) -> None:
    colour = COLOURS.get(run.mode, INK)
    times_s, totals = staircase(repetition, start_s, end_s)
    axis.fill_between(times_s, totals, step="post", color=colour, alpha=0.18, linewidth=0)
    axis.step(times_s, totals, where="post", color=colour, linewidth=1.8)
    gap_start_s, gap_end_s = repetition.worst_gap()
    axis.axvspan(max(gap_start_s, start_s), min(gap_end_s, end_s), color=MARK, alpha=0.08, linewidth=0)
    axis.axvline(0, color=QUIET, linewidth=1, linestyle=":")
    axis.axvline(repetition.ttft_s, color=MARK, linewidth=1.4)
    axis.set_title(MODE_TITLES.get(run.mode, run.mode), loc="left", fontsize=10, color=INK, fontweight="bold")
    gap_ms = 1000 * (gap_end_s - gap_start_s)
    axis.set_title(
        f"first token after {repetition.ttft_s:.2f} s · worst gap {gap_ms:.0f} ms",
        loc="right",
        fontsize=9,
        color=MARK,
    )
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8, colors=INK)
    axis.grid(axis="y", color="#e6e6e6", linewidth=0.6)
    axis.set_axisbelow(True)


def _label(figure: Any, lowest: Any, record: Record) -> None:
    spec = record.scenario
    figure.suptitle(
        f"Tokens of {spec.num_running} running conversations "
        f"while a {spec.long_prompt_tokens}-token prompt arrives",
        fontsize=11.5,
        color=INK,
        x=0.01,
        ha="left",
    )
    figure.supylabel("tokens, all conversations together", fontsize=9, color=INK)
    lowest.set_xlabel(
        "seconds since the long prompt was sent (dotted)   ·   red line: its first token   ·   "
        "red band: longest pause of a conversation",
        fontsize=8.5,
        color=INK,
    )
