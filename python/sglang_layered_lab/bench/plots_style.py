"""What the pictures have in common: colours by mode, axes, legends. Pure but for the figures it is given."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

INK, QUIET, MARK, GRID = "#222222", "#8a8a8a", "#c0392b", "#e6e6e6"
COLOURS = {
    "default": "#3d3d3d",
    "whole": "#7f7f7f",
    "mixed": "#d98a1f",
    "pdmux": "#8e5aa8",
    "layered": "#1f6fb4",
}
SPARE_COLOURS = ("#2a9d6f", "#b5487a", "#7a6a2f", "#3aa6b9")
PHASE_COLOURS = {"prompt": "#1f6fb4", "hybrid": "#8fbadb", "decode": "#d0d0d0"}
LINE_STYLES, MARKERS = ("-", "--", ":", "-."), ("o", "s", "^", "D", "v", "P", "X")
WIDTH_IN = 8.5
TITLE_LETTERS = 92  # that fit into WIDTH_IN
LEGEND_COLUMNS = 3
LOG_FROM = 15.0  # values further apart than this are drawn on a logarithmic axis


def new_figure(height_in: float, title: str) -> Figure:
    """An empty figure with its title, broken where it is too long."""
    lines = textwrap.wrap(title, TITLE_LETTERS) or [""]
    figure = Figure(figsize=(WIDTH_IN, height_in + 0.2 * (len(lines) - 1)), layout="constrained")
    figure.suptitle("\n".join(lines), fontsize=11.5, color=INK, x=0.01, ha="left")
    return figure


def colours_of(modes: Sequence[str]) -> dict[str, str]:
    """A colour for every mode, in the order in which they come."""
    spare = iter(SPARE_COLOURS)
    return {mode: COLOURS.get(mode) or next(spare, INK) for mode in dict.fromkeys(modes)}


def looks_of(modes: Sequence[str]) -> list[dict[str, Any]]:
    """Line of every arm: arms of one mode share its colour and differ in style and marker."""
    colours = colours_of(modes)
    seen = [modes[:index].count(mode) for index, mode in enumerate(modes)]
    return [
        {
            "color": colours[mode],
            "linestyle": LINE_STYLES[count % len(LINE_STYLES)],
            "marker": MARKERS[count % len(MARKERS)],
            "markersize": 4.5,
        }
        for mode, count in zip(modes, seen, strict=True)
    ]


def plain(axis: Any, grid: str = "y") -> None:
    """Thin grid, no frame above and to the right."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8, colors=INK)
    axis.grid(axis=grid, color=GRID, linewidth=0.6)
    axis.set_axisbelow(True)


def scaled(axis: Any, name: str, values: Iterable[float], factor: float = 1.0) -> bool:
    """Let the axis `name` (x or y) begin at 0, or be logarithmic where values lie far apart: then True.

    `factor` is what ticks are multiplied by.
    """
    known = [value for value in values if value > 0]
    is_log = bool(known) and max(known) > LOG_FROM * min(known)
    way = {"x": axis.xaxis, "y": axis.yaxis}[name]
    if is_log:
        getattr(axis, f"set_{name}scale")("log")
        way.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        way.set_minor_formatter(NullFormatter())
    else:
        getattr(axis, f"set_{name}lim")(0)
    way.set_major_formatter(FuncFormatter(lambda value, _: f"{factor * value:g}"))
    return is_log


def say(axis: Any, name: str, text: str, *, is_log: bool = False) -> None:
    """Label an axis."""
    shown = f"{text} (logarithmic)" if is_log else text
    getattr(axis, f"set_{name}label")(shown, fontsize=9, color=INK)


def bars(axis: Any, labels: Sequence[str]) -> None:
    """Make an axis one of lying bars, the first on top."""
    axis.set_yticks(range(len(labels)), labels)
    axis.set_ylim(len(labels) - 0.5, -0.5)
    axis.margins(x=0.18)
    axis.locator_params(axis="x", nbins=5)
    plain(axis, grid="x")
    axis.tick_params(axis="y", length=0, labelsize=9)


def value_beside(axis: Any, end: float, place: float, text: str) -> None:
    """Write a bar's value at its end."""
    axis.annotate(
        text, (end, place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8.5, color=INK
    )


def short(value: float) -> str:
    """Three digits, more only before the point."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def legend_below(figure: Figure, axis: Any) -> None:
    """Legend of the axis' curves under the figure; the figure grows by its rows beyond the first two."""
    handles, labels = axis.get_legend_handles_labels()
    num_rows = -(-len(labels) // LEGEND_COLUMNS)
    figure.set_figheight(figure.get_figheight() + 0.19 * max(0, num_rows - 2))
    figure.legend(
        handles, labels, loc="outside lower center", ncols=LEGEND_COLUMNS, fontsize=8.5, frameon=False
    )


def legend_of_modes(figure: Figure, colours: dict[str, str]) -> None:
    """A dot for every mode under the figure."""
    dots = [
        Line2D([], [], marker="o", linestyle="", markersize=7, color=colour, label=mode)
        for mode, colour in colours.items()
    ]
    figure.legend(handles=dots, loc="outside lower center", ncols=len(dots), fontsize=8.5, frameon=False)
