"""Pictures of computed metrics. It draws numbers that it is given and computes none.

Every function takes plain dicts, as they are in a JSON file, and returns a matplotlib Figure of its own;
nothing global is touched. Times come in seconds, bytes in bytes, energy in joules. A `mode` chooses the
colour; unknown modes get one of the spare colours, in the order in which they come.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from sglang_layered_lab.bench.plots_labels import spread
from sglang_layered_lab.bench.plots_style import (
    COLOURS,
    INK,
    MARK,
    PHASE_COLOURS,
    QUIET,
    bars,
    colours_of,
    legend_below,
    legend_of_modes,
    looks_of,
    new_figure,
    plain,
    say,
    scaled,
    short,
    value_beside,
)

__all__ = (
    "COLOURS",
    "INK",
    "MARK",
    "QUIET",
    "attainment",
    "energy",
    "expert_bytes",
    "pareto",
    "tokens_over_time",
    "ttft_over_rate",
)
WORST, P99 = "worst_tbt_s", "p99_tbt_s"
GAPS = {WORST: "worst gap between tokens", P99: "p99 of gaps between tokens"}
SINCE_DUE = "seconds since the request was due   ·   mark: its first token"


class ArmLabel(TypedDict):
    """`label` names the arm within its mode, such as its chunk size or number of groups."""

    mode: str
    label: str


class ParetoPoint(ArmLabel):
    """One arm; `on_front` says by "worst_tbt_s" and "p99_tbt_s" that no other arm beats it there."""

    ttft_s: float
    worst_tbt_s: float
    p99_tbt_s: float
    on_front: dict[str, bool]


class AttainmentCurve(ArmLabel, total=False):
    """One arm over request rates: shares from 0 to 1, and if known their intervals and average batches."""

    rates_rps: Sequence[float]
    attainment: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    batch: Sequence[float]


class TtftCurve(ArmLabel, total=False):
    """One arm's mean TTFT over request rates, and if known its intervals."""

    rates_rps: Sequence[float]
    ttft_s: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


class TokenStream(ArmLabel, total=False):
    """One stream of an arm: at times_s[i] it had num_tokens[i] tokens.

    The mark is at its first token if `mark_s` is absent; `end_s` is when one was last looked.
    """

    times_s: Sequence[float]
    num_tokens: Sequence[int]
    mark_s: float
    end_s: float


class ExpertBytes(TypedDict):
    """Bytes of activated experts per request, by the phase of the forwards that activated them."""

    label: str
    prompt: float
    hybrid: float
    decode: float
    total: float


class Energy(ArmLabel, total=False):
    """Joules by what they are divided by ("prompt token"), and if known their intervals by the same keys."""

    joules: dict[str, float]
    low: dict[str, float]
    high: dict[str, float]


def pareto(points: Sequence[ParetoPoint], title: str, gaps: dict[str, str] = GAPS) -> Figure:
    """Draw TTFT against worst and p99 TBT; lower left is better, the line joins arms that none beats.

    `gaps` names what the two TBT are of.
    """
    figure = new_figure(4.8, title)
    panels = figure.subplots(1, 2, sharey=True)
    colours = colours_of([point["mode"] for point in points])
    drawn = [_pareto_panel(axis, points, key, colours) for axis, key in zip(panels, gaps, strict=True)]
    for axis, (key, name) in zip(panels, gaps.items(), strict=True):
        axis.margins(x=0.18, y=0.14)
        values = [point[key] for point in points]  # type: ignore[literal-required]
        say(axis, "x", f"{name}, ms", is_log=scaled(axis, "x", values, factor=1000))
        plain(axis, grid="both")
    is_log = scaled(panels[0], "y", [point["ttft_s"] for point in points])
    say(panels[0], "y", "time to first token, mean, s", is_log=is_log)
    legend_of_modes(figure, colours)
    for axis, key, (labels, hint) in zip(panels, gaps, drawn, strict=True):
        places = [(point[key], point["ttft_s"]) for point in points]  # type: ignore[literal-required]
        spread(figure, labels, places, axis.lines[0], [hint])
    return figure


def _pareto_panel(
    axis: Any, points: Sequence[Any], key: str, colours: dict[str, str]
) -> tuple[list[Any], Any]:
    """Draw a panel; give its labels, those on the front first, and the text of its corner."""
    front = sorted((point[key], point["ttft_s"]) for point in points if point["on_front"][key])
    axis.plot(
        [tbt_s for tbt_s, _ in front], [ttft_s for _, ttft_s in front], color=QUIET, linewidth=1, zorder=1
    )
    labels = []
    for point in points:
        place, colour = (point[key], point["ttft_s"]), colours[point["mode"]]
        face = colour if point["on_front"][key] else "white"
        axis.scatter(*place, s=46, color=face, edgecolor=colour, linewidth=1.4, zorder=3)
        arrow = {"arrowstyle": "-", "color": colour, "linewidth": 0.5, "shrinkA": 1, "shrinkB": 3}
        look: Any = {"fontsize": 8, "color": colour, "arrowprops": arrow, "zorder": 4}
        label = axis.annotate(point["label"], place, xytext=(5, 4), textcoords="offset points", **look)
        label.set_in_layout(False)
        labels.append((not point["on_front"][key], label))
    text = "lower left is better; filled: no arm beats it"
    hint = axis.annotate(text, (0.02, 0.015), xycoords="axes fraction", fontsize=7, color=QUIET)
    return [label for _, label in sorted(labels, key=lambda each: each[0])], hint


def attainment(curves: Sequence[AttainmentCurve], title: str, target: float = 0.9) -> Figure:
    """Draw the share of requests that met all limits against the rate, and the average batch if given."""
    has_batch = any("batch" in curve for curve in curves)
    figure = new_figure(5.6 if has_batch else 3.8, title)
    heights = [2, 1] if has_batch else [1]
    panels = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for curve, look in zip(curves, looks_of([curve["mode"] for curve in curves]), strict=True):
        _curve(panels[0], curve, curve["attainment"], look)
        if "batch" in curve:
            panels[1].plot(curve["rates_rps"], curve["batch"], **look)
    legend_below(figure, panels[0])
    _share_axis(panels[0], target)
    if has_batch:
        say(panels[1], "y", "average decode batch")
        panels[1].set_ylim(bottom=0)
    say(panels[-1], "x", "request rate, requests/s")
    for axis in panels:
        plain(axis)
    return figure


def _curve(axis: Any, curve: Any, values: Sequence[float], look: dict[str, Any]) -> None:
    """Draw values over rates, and their intervals as a shade."""
    if "low" in curve and "high" in curve:
        shade = {"color": look["color"], "alpha": 0.11, "linewidth": 0}
        axis.fill_between(curve["rates_rps"], curve["low"], curve["high"], **shade)
    axis.plot(curve["rates_rps"], values, label=curve["label"], **look)


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
    say(axis, "y", "requests within the limits")


def ttft_over_rate(curves: Sequence[TtftCurve], title: str) -> Figure:
    """Draw the mean time to first token against the rate; lower is better."""
    figure = new_figure(3.8, title)
    axis = figure.subplots()
    for curve, look in zip(curves, looks_of([curve["mode"] for curve in curves]), strict=True):
        _curve(axis, curve, curve["ttft_s"], look)
    is_log = scaled(axis, "y", [value for curve in curves for value in curve["ttft_s"]])
    say(axis, "y", "time to first token, mean, s", is_log=is_log)
    say(axis, "x", "request rate, requests/s")
    legend_below(figure, axis)
    plain(axis)
    return figure


def tokens_over_time(streams: Sequence[TokenStream], title: str, since: str = SINCE_DUE) -> Figure:
    """Draw the tokens of one stream per arm as staircases; a flat part is a pause. `since` names the time."""
    figure = new_figure(3.8, title)
    axis = figure.subplots()
    for stream, look in zip(streams, looks_of([stream["mode"] for stream in streams]), strict=True):
        _staircase(axis, stream, look)
    axis.margins(x=0.03, y=0.08)
    axis.set_xlim(left=0)
    axis.set_ylim(bottom=0)
    say(axis, "x", since)
    say(axis, "y", "tokens")
    legend_below(figure, axis)
    plain(axis, grid="both")
    return figure


def _staircase(axis: Any, stream: TokenStream, look: dict[str, Any]) -> None:
    times_s, counts = [0.0, *stream["times_s"]], [0, *stream["num_tokens"]]
    mark_s = stream["mark_s"] if "mark_s" in stream else times_s[1]
    there = max(count for time_s, count in zip(times_s, counts, strict=True) if time_s <= mark_s)
    if "end_s" in stream:
        times_s, counts = [*times_s, stream["end_s"]], [*counts, counts[-1]]
    line = {"color": look["color"], "linestyle": look["linestyle"]}
    axis.step(times_s, counts, where="post", label=stream["label"], **line)
    axis.scatter(mark_s, there, s=28, color=look["color"], marker=look["marker"], zorder=3)


def expert_bytes(arms: Sequence[ExpertBytes], title: str) -> Figure:
    """Draw the bytes of activated experts per request, stacked by phase, one bar an arm."""
    figure = new_figure(1.5 + 0.42 * len(arms), title)
    axis = figure.subplots()
    places = range(len(arms))
    left = [0.0] * len(arms)
    values: Any = arms
    for phase, colour in PHASE_COLOURS.items():
        widths = [arm[phase] / 1e9 for arm in values]
        axis.barh(places, widths, left=left, color=colour, edgecolor="white", height=0.66, label=phase)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    for place, arm in zip(places, arms, strict=True):
        value_beside(axis, arm["total"] / 1e9, place, short(arm["total"] / 1e9))
    bars(axis, [arm["label"] for arm in arms])
    say(axis, "x", "GB of activated experts per request   ·   less is better")
    legend_below(figure, axis)
    return figure


def energy(arms: Sequence[Energy], title: str) -> Figure:
    """Draw energy per token, one panel for each kind of token in `joules`, one bar an arm."""
    kinds = list(dict.fromkeys(kind for arm in arms for kind in arm["joules"]))
    figure = new_figure(1.3 + 0.42 * len(arms), title)
    panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False)
    colours = colours_of([arm["mode"] for arm in arms])
    for axis, kind in zip(panels[0], kinds, strict=True):
        for place, arm in enumerate(arms):
            if kind in arm["joules"]:
                _energy_bar(axis, place, arm, kind, colours[arm["mode"]])
        bars(axis, [arm["label"] for arm in arms])
        say(axis, "x", f"mJ per {kind}")
    return figure


def _energy_bar(axis: Any, place: int, arm: Energy, kind: str, colour: str) -> None:
    value = end = 1000 * arm["joules"][kind]
    axis.barh(place, value, color=colour, height=0.66)
    if "low" in arm and "high" in arm:
        end = 1000 * arm["high"][kind]
        axis.plot([1000 * arm["low"][kind], end], [place, place], color=INK, linewidth=1.2)
    value_beside(axis, end, place, short(value))
