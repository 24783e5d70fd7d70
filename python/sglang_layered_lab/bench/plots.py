"""Pictures of computed metrics. It draws numbers that it is given and computes none.

Every function takes rows, one an arm (and rate), as a frame or as plain dicts, and returns a matplotlib
Figure of its own; draw within `rc_context(STYLE)`. Times come in seconds, bytes in bytes, energy in joules. A
`mode` chooses the colour; unknown modes get one of the spare colours, in the order in which they come.
"""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter

from sglang_layered_lab.bench.figure_data import JOULES, RATE, SINCE_DUE
from sglang_layered_lab.bench.plots_labels import spread
from sglang_layered_lab.bench.scalars import PHASES

INK, QUIET, MARK, GRID = "#222222", "#8a8a8a", "#c0392b", "#e6e6e6"
COLOURS = {
    "default": "#3d3d3d",
    "whole": "#7f7f7f",
    "mixed": "#d98a1f",
    "pdmux": "#8e5aa8",
    "layered": "#1f6fb4",
}
SPARE_COLOURS = ("#2a9d6f", "#b5487a", "#7a6a2f", "#3aa6b9")
PHASE_COLOURS = ("#1f6fb4", "#8fbadb", "#d0d0d0")
LINE_STYLES, MARKERS = ("-", "--", ":", "-."), ("o", "s", "^", "D", "v", "P", "X")
STYLE: Mapping[str, Any] = {
    "axes.axisbelow": True,
    "axes.labelcolor": INK,
    "axes.labelsize": 9,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.titlesize": 11.5,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "text.color": INK,
    "xtick.color": INK,
    "xtick.labelsize": 8,
    "ytick.color": INK,
    "ytick.labelsize": 8,
}
WIDTH_IN = 8.5
TITLE_LETTERS = 92  # that fit into WIDTH_IN
LEGEND_COLUMNS = 3
LOG_FROM = 15.0  # values further apart than this are drawn on a logarithmic axis
WORST, P99 = "worst_tbt_s", "p99_tbt_s"
GAPS = {WORST: "worst gap between tokens", P99: "p99 of gaps between tokens"}
RATE_LABEL = "request rate, requests/s"


ParetoPoint = Mapping[str, Any]  # a row of `figure_data.pareto_points`


def pareto(
    points: pd.DataFrame | Sequence[ParetoPoint], title: str, gaps: Mapping[str, str] = GAPS
) -> Figure:
    """Draw TTFT against worst and p99 TBT; lower left is better, the line joins arms that none beats.

    `points` are rows of `figure_data.pareto_points`; `gaps` names what the two TBT are of.
    """
    rows = pd.DataFrame(points)
    figure = new_figure(4.8, title)
    panels = figure.subplots(1, 2, sharey=True)
    colours = colours_of(rows["mode"])
    drawn = [_pareto_panel(axis, rows, key, colours) for axis, key in zip(panels, gaps, strict=True)]
    for axis, (key, name) in zip(panels, gaps.items(), strict=True):
        axis.margins(x=0.18, y=0.14)
        axis.grid(axis="both")
        axis.set_xlabel(f"{name}, ms{scaled(axis.xaxis, rows[key], factor=1000)}")
    panels[0].set_ylabel(f"time to first token, mean, s{scaled(panels[0].yaxis, rows.ttft_s)}")
    dots: dict[str, Any] = {"marker": "o", "linestyle": "", "markersize": 7}
    handles = [Line2D([], [], color=colour, label=mode, **dots) for mode, colour in colours.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    for axis, key, (labels, hint) in zip(panels, gaps, drawn, strict=True):
        spread(figure, labels, rows[[key, "ttft_s"]].to_numpy(), axis.lines[0], [hint])
    return figure


def _pareto_panel(
    axis: Any, rows: pd.DataFrame, key: str, colours: Mapping[str, str]
) -> tuple[list[Any], Any]:
    """Draw a panel; give its labels, those on the front first, and the text of its corner."""
    is_front = np.array([each[key] for each in rows.on_front])
    front = rows[is_front].sort_values([key, "ttft_s"])
    axis.plot(front[key], front.ttft_s, color=QUIET, linewidth=1, zorder=1)
    labels = []
    for row in (*rows[is_front].to_dict("records"), *rows[~is_front].to_dict("records")):
        place, colour = (row[key], row["ttft_s"]), colours[row["mode"]]
        face = colour if row["on_front"][key] else "white"
        axis.scatter(*place, s=46, color=face, edgecolor=colour, linewidth=1.4, zorder=3)
        arrow = {"arrowstyle": "-", "color": colour, "linewidth": 0.5, "shrinkA": 1, "shrinkB": 3}
        look: Any = {"fontsize": 8, "color": colour, "arrowprops": arrow, "zorder": 4}
        label = axis.annotate(row["label"], place, xytext=(5, 4), textcoords="offset points", **look)
        label.set_in_layout(False)
        labels.append(label)
    text = "lower left is better; filled: no arm beats it"
    return labels, axis.annotate(text, (0.02, 0.015), xycoords="axes fraction", fontsize=7, color=QUIET)


def attainment(rows: pd.DataFrame, name: str, title: str, target: float = 0.9) -> Figure:
    """Draw the share of requests within the limits (column `name`) over the rate, and the average batch."""
    figure = new_figure(5.6, title)
    shares, batches = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    _curves(shares, rows, name)
    _curves(batches, rows, "decode_batch", with_intervals=False)
    shares.axhline(target, color=MARK, linewidth=1.2, linestyle="--")
    beside: Any = {"transform": shares.get_yaxis_transform(), "va": "center", "color": MARK, "fontsize": 8}
    shares.text(1.005, target, f"{target:.0%}", **beside)
    shares.set(ylim=(0, 1.03), ylabel="requests within the limits")
    shares.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    batches.set(xlabel=RATE_LABEL, ylabel="average decode batch", ylim=(0, None))
    legend_below(figure, shares)
    return figure


def ttft_over_rate(rows: pd.DataFrame, title: str) -> Figure:
    """Draw the mean time to first token over the rate; lower is better."""
    figure = new_figure(3.8, title)
    axis = figure.subplots()
    _curves(axis, rows, "ttft_mean")
    axis.set(xlabel=RATE_LABEL)
    axis.set_ylabel(f"time to first token, mean, s{scaled(axis.yaxis, rows.ttft_mean)}")
    legend_below(figure, axis)
    return figure


def _curves(axis: Any, rows: pd.DataFrame, name: str, with_intervals: bool = True) -> None:
    """Draw a column over the rate, a line an arm, and its intervals as a shade."""
    axis.grid(axis="y")
    by_arm = list(rows.groupby("label", sort=False))
    looks = looks_of([arm["mode"].iloc[0] for _, arm in by_arm])
    for (label, arm), look in zip(by_arm, looks, strict=True):
        ends = arm.reindex(columns=[f"{name}_low", f"{name}_high"])
        if with_intervals and ends.notna().all(axis=None):
            axis.fill_between(arm[RATE], *ends.to_numpy().T, color=look["color"], alpha=0.11, linewidth=0)
        axis.plot(arm[RATE], arm[name], label=label, **look)


def tokens_over_time(streams: Sequence[Mapping[str, Any]], title: str, since: str = SINCE_DUE) -> Figure:
    """Draw the tokens of one stream per arm as staircases; a flat part is a pause. `since` names the time."""
    figure = new_figure(3.8, title)
    axis = figure.subplots()
    for stream, look in zip(streams, looks_of([stream["mode"] for stream in streams]), strict=True):
        times_s, counts = [0.0, *stream["times_s"]], [0, *stream["num_tokens"]]
        mark_s = stream["mark_s"] if "mark_s" in stream else times_s[1]
        there = counts[np.searchsorted(times_s, mark_s, "right") - 1]
        if "end_s" in stream:
            times_s, counts = [*times_s, stream["end_s"]], [*counts, counts[-1]]
        line = {"color": look["color"], "linestyle": look["linestyle"]}
        axis.step(times_s, counts, where="post", label=stream["label"], **line)
        axis.scatter(mark_s, there, s=28, color=look["color"], marker=look["marker"], zorder=3)
    axis.margins(x=0.03, y=0.08)
    axis.set(xlim=(0, None), ylim=(0, None), xlabel=since, ylabel="tokens")
    axis.grid(axis="both")
    legend_below(figure, axis)
    return figure


def expert_bytes(rows: pd.DataFrame, title: str) -> Figure:
    """Draw the bytes of activated experts per request, stacked by phase, one bar an arm."""
    figure = new_figure(1.5 + 0.42 * len(rows), title)
    axis = figure.subplots()
    left = np.zeros(len(rows))
    for phase, colour in zip(PHASES, PHASE_COLOURS, strict=True):
        look: dict[str, Any] = {"color": colour, "edgecolor": "white", "height": 0.66, "label": phase}
        axis.barh(range(len(rows)), rows[phase] / 1e9, left=left, **look)
        left = left + rows[phase].to_numpy() / 1e9
    _bars(axis, rows, rows.expert_bytes / 1e9, rows.expert_bytes / 1e9)
    axis.set_xlabel("GB of activated experts per request   ·   less is better")
    legend_below(figure, axis)
    return figure


def energy(rows: pd.DataFrame, title: str) -> Figure:
    """Draw energy per token and its intervals, one panel for each kind of token, one bar an arm."""
    figure = new_figure(1.3 + 0.42 * len(rows), title)
    panels = figure.subplots(1, len(JOULES), sharey=True)
    colours = list(rows["mode"].map(colours_of(rows["mode"])))
    for axis, (kind, name) in zip(panels, JOULES.items(), strict=True):
        values, low, high = (1e3 * rows[f"{name}{end}"].to_numpy() for end in ("", "_low", "_high"))
        axis.barh(range(len(rows)), values, color=colours, height=0.66)
        known = np.flatnonzero(np.isfinite(low))
        axis.hlines(known, low[known], high[known], color=INK, linewidth=1.2)
        _bars(axis, rows, values, np.fmax(values, high))
        axis.set_xlabel(f"mJ per {kind}")
    return figure


def _bars(axis: Any, rows: pd.DataFrame, values: Iterable[float], ends: Iterable[float]) -> None:
    """Make an axis one of lying bars, the first on top, with their values at their ends."""
    for place, (value, end) in enumerate(zip(values, ends, strict=True)):
        if np.isfinite(value):
            text = f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
            beside: Any = {"xytext": (4, 0), "textcoords": "offset points", "va": "center", "fontsize": 8.5}
            axis.annotate(text, (end, place), **beside)
    axis.set_yticks(range(len(rows)), rows.label, fontsize=9)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.margins(x=0.18)
    axis.locator_params(axis="x", nbins=5)
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="x")


def new_figure(height_in: float, title: str) -> Figure:
    """An empty figure with its title, broken where it is too long."""
    lines = textwrap.wrap(title, TITLE_LETTERS) or [""]
    figure = Figure(figsize=(WIDTH_IN, height_in + 0.2 * (len(lines) - 1)), layout="constrained")
    figure.suptitle("\n".join(lines), x=0.01, ha="left")
    return figure


def colours_of(modes: Iterable[str]) -> dict[str, str]:
    """A colour for every mode, in the order in which they come."""
    spare = iter(SPARE_COLOURS)
    return {mode: COLOURS.get(mode) or next(spare, INK) for mode in dict.fromkeys(modes)}


def looks_of(modes: Sequence[str]) -> list[dict[str, Any]]:
    """Line of every arm: arms of one mode share its colour and differ in style and marker."""
    colours = colours_of(modes)
    counts = [modes[:index].count(mode) for index, mode in enumerate(modes)]
    return [
        {
            "color": colours[mode],
            "linestyle": LINE_STYLES[count % len(LINE_STYLES)],
            "marker": MARKERS[count % len(MARKERS)],
            "markersize": 4.5,
        }
        for mode, count in zip(modes, counts, strict=True)
    ]


def scaled(way: Any, values: pd.Series, factor: float = 1.0) -> str:
    """Let an axis begin at 0, or be logarithmic where values lie far apart; return what its label adds.

    `way` is the x or y axis of a panel; `factor` is what ticks are multiplied by.
    """
    known = values[values > 0]
    is_log = bool(len(known)) and known.max() > LOG_FROM * known.min()
    if is_log:
        getattr(way.axes, f"set_{way.axis_name}scale")("log")
        way.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        way.set_minor_formatter(NullFormatter())
    else:
        getattr(way.axes, f"set_{way.axis_name}lim")(0)
    way.set_major_formatter(FuncFormatter(lambda value, _: f"{factor * value:g}"))
    return " (logarithmic)" if is_log else ""


def legend_below(figure: Figure, axis: Any) -> None:
    """Legend of the axis' curves under the figure; the figure grows by its rows beyond the first two."""
    handles, labels = axis.get_legend_handles_labels()
    num_rows = -(-len(labels) // LEGEND_COLUMNS)
    figure.set_figheight(figure.get_figheight() + 0.19 * max(0, num_rows - 2))
    figure.legend(handles, labels, loc="outside lower center", ncols=LEGEND_COLUMNS)
