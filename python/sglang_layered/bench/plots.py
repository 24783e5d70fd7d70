"""Pictures of computed metrics. It draws numbers that it is given and computes none.

Every function takes plain dicts, as they are in a JSON file, and returns a matplotlib Figure of its own;
nothing global is touched. Times come in seconds, bytes in bytes, energy in joules. A `mode` chooses the
colour; unknown modes get one of the spare colours, in the order in which they come.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, PercentFormatter

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
WIDTH_IN = 8.5


class _Arm(TypedDict):
    """`label` names the arm within its mode, such as its chunk size or number of groups."""

    mode: str
    label: str


class ParetoPoint(_Arm):
    """One arm; `on_front` says by "worst_tbt_s" and "p99_tbt_s" that no other arm beats it there."""

    ttft_s: float
    worst_tbt_s: float
    p99_tbt_s: float
    on_front: dict[str, bool]


class AttainmentCurve(_Arm, total=False):
    """One arm over request rates: shares from 0 to 1, and if known their intervals and average batches."""

    rates_rps: Sequence[float]
    attainment: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    batch: Sequence[float]


class TokenStream(_Arm):
    """One request of an arm: at times_s[i] after it was due it had num_tokens[i] tokens."""

    times_s: Sequence[float]
    num_tokens: Sequence[int]


class ExpertBytes(TypedDict):
    """Bytes of activated experts per request, by the phase of the forwards that activated them."""

    label: str
    prompt: float
    hybrid: float
    decode: float
    total: float


class Energy(_Arm, total=False):
    """Joules by what they are divided by ("prompt token"), and if known their intervals by the same keys."""

    joules: dict[str, float]
    low: dict[str, float]
    high: dict[str, float]


def pareto(points: Sequence[ParetoPoint], title: str) -> Figure:
    """Draw TTFT against worst and p99 TBT; lower left is better, the line joins arms that none beats."""
    figure = _figure(4.6, title)
    panels = figure.subplots(1, 2, sharey=True)
    colours = _colours([point["mode"] for point in points])
    for axis, key, name in zip(
        panels, ("worst_tbt_s", "p99_tbt_s"), ("worst gap", "p99 of gaps"), strict=True
    ):
        _pareto_panel(axis, points, key, colours)
        axis.set_xlabel(f"{name} between tokens, ms", fontsize=9, color=INK)
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{1000 * value:g}"))
        _from_zero(axis)
        _plain(axis, grid="both")
    panels[0].set_ylabel("time to first token, s", fontsize=9, color=INK)
    _legend_of_modes(figure, colours)
    return figure


def _pareto_panel(axis: Any, points: Sequence[Any], key: str, colours: dict[str, str]) -> None:
    front = sorted((point[key], point["ttft_s"]) for point in points if point["on_front"][key])
    axis.plot(
        [tbt_s for tbt_s, _ in front], [ttft_s for _, ttft_s in front], color=QUIET, linewidth=1, zorder=1
    )
    for point in points:
        place, colour = (point[key], point["ttft_s"]), colours[point["mode"]]
        axis.scatter(*place, s=46, color=colour, edgecolor="white", zorder=3)
        axis.annotate(
            point["label"], place, xytext=(5, 4), textcoords="offset points", fontsize=8, color=colour
        )


def attainment(curves: Sequence[AttainmentCurve], title: str, target: float = 0.9) -> Figure:
    """Draw the share of requests that met both limits against the rate, and the average batch if given."""
    has_batch = any("batch" in curve for curve in curves)
    figure = _figure(5.6 if has_batch else 3.8, title)
    heights = [2, 1] if has_batch else [1]
    panels = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    colours = _colours([curve["mode"] for curve in curves])
    styles = _line_styles([curve["mode"] for curve in curves])
    for curve, style in zip(curves, styles, strict=True):
        look: Any = {"color": colours[curve["mode"]], "linestyle": style, "marker": "o", "markersize": 4.5}
        rates_rps = curve["rates_rps"]
        if "low" in curve and "high" in curve:
            shade = {"color": look["color"], "alpha": 0.15, "linewidth": 0}
            panels[0].fill_between(rates_rps, curve["low"], curve["high"], **shade)
        panels[0].plot(rates_rps, curve["attainment"], label=curve["label"], **look)
        if "batch" in curve:
            panels[1].plot(rates_rps, curve["batch"], **look)
    _legend_below(figure, panels[0])
    _share_axis(panels[0], target)
    if has_batch:
        panels[1].set_ylabel("average batch", fontsize=9, color=INK)
        panels[1].set_ylim(bottom=0)
    panels[-1].set_xlabel("request rate, requests/s", fontsize=9, color=INK)
    for axis in panels:
        _plain(axis)
    return figure


def _share_axis(axis: Any, target: float) -> None:
    axis.axhline(target, color=MARK, linewidth=1.2, linestyle="--")
    axis.annotate(
        f"{target:.0%}",
        (1, target),
        xycoords=("axes fraction", "data"),
        xytext=(4, -3),
        textcoords="offset points",
        fontsize=8,
        color=MARK,
    )
    axis.set_ylim(0, 1.03)
    axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axis.set_ylabel("requests within the limits", fontsize=9, color=INK)


def tokens_over_time(streams: Sequence[TokenStream], title: str) -> Figure:
    """Draw the tokens of one request per arm as staircases; a flat part is a pause."""
    figure = _figure(3.8, title)
    axis = figure.subplots()
    modes = [stream["mode"] for stream in streams]
    colours = _colours(modes)
    for stream, style in zip(streams, _line_styles(modes), strict=True):
        colour = colours[stream["mode"]]
        times_s, counts = [0.0, *stream["times_s"]], [0, *stream["num_tokens"]]
        axis.step(times_s, counts, where="post", color=colour, linestyle=style, label=stream["label"])
        axis.scatter(times_s[1], counts[1], s=28, color=colour, zorder=3)
    _from_zero(axis)
    axis.set_xlabel("seconds since the request was due   ·   dot: its first token", fontsize=9, color=INK)
    axis.set_ylabel("tokens of the request", fontsize=9, color=INK)
    _legend_below(figure, axis)
    _plain(axis, grid="both")
    return figure


def expert_bytes(arms: Sequence[ExpertBytes], title: str) -> Figure:
    """Draw the bytes of activated experts per request, stacked by phase, one bar an arm."""
    figure = _figure(1.5 + 0.42 * len(arms), title)
    axis = figure.subplots()
    places = range(len(arms))
    left = [0.0] * len(arms)
    values: Any = arms
    for phase, colour in PHASE_COLOURS.items():
        widths = [arm[phase] / 1e9 for arm in values]
        axis.barh(places, widths, left=left, color=colour, edgecolor="white", height=0.66, label=phase)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    for place, arm in zip(places, arms, strict=True):
        _value_beside(axis, arm["total"] / 1e9, place, _short(arm["total"] / 1e9))
    _bars(axis, [arm["label"] for arm in arms])
    axis.set_xlabel("GB of activated experts per request", fontsize=9, color=INK)
    _legend_below(figure, axis)
    return figure


def energy(arms: Sequence[Energy], title: str) -> Figure:
    """Draw energy per token, one panel for each kind of token in `joules`, one bar an arm."""
    kinds = list(dict.fromkeys(kind for arm in arms for kind in arm["joules"]))
    figure = _figure(1.3 + 0.42 * len(arms), title)
    panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False)
    colours = _colours([arm["mode"] for arm in arms])
    for axis, kind in zip(panels[0], kinds, strict=True):
        for place, arm in enumerate(arms):
            if kind in arm["joules"]:
                _energy_bar(axis, place, arm, kind, colours[arm["mode"]])
        _bars(axis, [arm["label"] for arm in arms])
        axis.set_xlabel(f"mJ per {kind}", fontsize=9, color=INK)
    return figure


def _energy_bar(axis: Any, place: int, arm: Energy, kind: str, colour: str) -> None:
    value = end = 1000 * arm["joules"][kind]
    axis.barh(place, value, color=colour, height=0.66)
    if "low" in arm and "high" in arm:
        end = 1000 * arm["high"][kind]
        axis.plot([1000 * arm["low"][kind], end], [place, place], color=INK, linewidth=1.2)
    _value_beside(axis, end, place, _short(value))


def _figure(height_in: float, title: str) -> Figure:
    figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
    figure.suptitle(title, fontsize=11.5, color=INK, x=0.01, ha="left")
    return figure


def _colours(modes: Sequence[str]) -> dict[str, str]:
    """A colour for every mode, in the order in which they come."""
    spare = iter(SPARE_COLOURS)
    return {mode: COLOURS.get(mode) or next(spare, INK) for mode in dict.fromkeys(modes)}


def _line_styles(modes: Sequence[str]) -> list[str]:
    """One style an arm: arms of one mode share its colour and differ in style."""
    return [("-", "--", ":", "-.")[modes[:index].count(mode) % 4] for index, mode in enumerate(modes)]


def _plain(axis: Any, grid: str = "y") -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8, colors=INK)
    axis.grid(axis=grid, color=GRID, linewidth=0.6)
    axis.set_axisbelow(True)


def _from_zero(axis: Any) -> None:
    axis.margins(x=0.18, y=0.1)
    axis.set_xlim(left=0)
    axis.set_ylim(bottom=0)


def _bars(axis: Any, labels: Sequence[str]) -> None:
    axis.set_yticks(range(len(labels)), labels)
    axis.set_ylim(len(labels) - 0.5, -0.5)
    axis.margins(x=0.18)
    axis.locator_params(axis="x", nbins=5)
    _plain(axis, grid="x")
    axis.tick_params(axis="y", length=0, labelsize=9)


def _value_beside(axis: Any, end: float, place: float, text: str) -> None:
    axis.annotate(
        text, (end, place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8.5, color=INK
    )


def _short(value: float) -> str:
    """Three digits, more only before the point."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _legend_below(figure: Figure, axis: Any) -> None:
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8.5, frameon=False)


def _legend_of_modes(figure: Figure, colours: dict[str, str]) -> None:
    dots = [
        Line2D([], [], marker="o", linestyle="", markersize=7, color=colour, label=mode)
        for mode, colour in colours.items()
    ]
    figure.legend(handles=dots, loc="outside lower center", ncols=len(dots), fontsize=8.5, frameon=False)
