"""Draws one panel on matplotlib axes: lines, steps, stacked areas, heatmaps. Asks nothing of Prometheus."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sglang_layered_lab.dashboard.model import Panel
from sglang_layered_lab.dashboard.prometheus import Line, Window
from sglang_layered_lab.dashboard.units import scale_for

INK, QUIET, GRID = "#222222", "#8a8a8a", "#e6e6e6"
MODE_SHADES = {
    "layered": ("#0f4c81", "#2f86cc", "#7db8e8", "#b5d8f3"),
    "chunked": ("#a35a00", "#e08e1b", "#f3bd6d", "#f9dcb0"),
}
PALETTE = ("#1f6fb4", "#d98a1f", "#3a923a", "#c0392b", "#7a5aa6", "#5f6b73", "#c2559d", "#2aa5a5")
MAX_LEGEND = 8
MAX_NAME = 34  # characters of a legend entry
LEGEND_CHARACTERS = 165  # that fit side by side on the page


@dataclass(frozen=True, slots=True)
class NamedLine:
    """A series as it is drawn: the query's legend with the labels filled in."""

    name: str
    line: Line
    dashed: bool


def legend_of(template: str, labels: dict[str, str]) -> str:
    """Fill `{{label}}`; a label that the series lacks leaves nothing."""
    text = re.sub(r"{{\s*(\w+)\s*}}", lambda found: labels.get(found[1], ""), template)
    return " ".join(text.split())


def draw_panel(axis: Any, panel: Panel, lines: list[NamedLine], window: Window) -> None:
    """Draw a panel's lines; without any it says so."""
    axis.set_title(panel.title, loc="left", fontsize=9.5, color=INK, fontweight="bold", pad=5)
    axis.tick_params(labelsize=7.5, colors=INK, length=2.5)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(QUIET)
    if not lines:
        axis.set_xticks([])
        axis.set_yticks([])
        axis.spines[["left", "bottom"]].set_color(GRID)
        axis.text(0.5, 0.5, "no data", transform=axis.transAxes, ha="center", va="center", color=QUIET)
        return
    draw = {"heatmap": _heatmap, "stacked": _stacked}.get(panel.kind, _lines)
    draw(axis, panel, lines, window)
    axis.set_xlim((window.start_s - window.end_s) / 60, 0)
    axis.locator_params(axis="x", nbins=5)


def _minutes(times_s: Any, window: Window) -> NDArray[np.float64]:
    return (np.asarray(times_s, dtype=float) - window.end_s) / 60


def _colours(lines: list[NamedLine]) -> list[str]:
    """Hue by prefill mode where the panel compares modes, else one colour a line."""
    modes = [named.line.labels.get("mode", "") for named in lines]
    if len(set(modes) & MODE_SHADES.keys()) < 2:
        return [PALETTE[index % len(PALETTE)] for index in range(len(lines))]
    seen: dict[str, int] = {}
    colours = []
    for mode in modes:
        shades = MODE_SHADES.get(mode, (QUIET,))
        colours.append(shades[seen.setdefault(mode, 0) % len(shades)])
        seen[mode] += 1
    return colours


def _lines(axis: Any, panel: Panel, lines: list[NamedLine], window: Window) -> None:
    scale = scale_for(panel.unit, max(max(named.line.values) for named in lines))
    style = "steps-post" if panel.kind == "steps" else "default"
    for named, colour in zip(lines, _colours(lines), strict=True):
        minutes, values = _with_gaps(named.line, window)
        dash = (0, (4, 2)) if named.dashed else "-"
        mark = "." if np.isfinite(values).sum() < 2 else None
        axis.plot(
            minutes,
            values / scale.divisor,
            label=named.name,
            color=colour,
            linewidth=1.4,
            linestyle=dash,
            drawstyle=style,
            marker=mark,
        )
    _finish(axis, scale.label, len(lines))


def _stacked(axis: Any, panel: Panel, lines: list[NamedLine], window: Window) -> None:
    grid_s = _grid(window)
    values = np.nan_to_num(np.array([_on_grid(named.line, window) for named in lines]))
    scale = scale_for(panel.unit, float(values.sum(axis=0).max()))
    base = np.zeros(len(grid_s))
    for named, layer, colour in zip(lines, values / scale.divisor, PALETTE * len(lines), strict=False):
        axis.fill_between(
            _minutes(grid_s, window),
            base,
            base + layer,
            step="post",
            color=colour,
            alpha=0.55,
            linewidth=0,
            label=named.name,
        )
        base = base + layer
    _finish(axis, scale.label, len(lines))


def _heatmap(axis: Any, panel: Panel, lines: list[NamedLine], window: Window) -> None:
    """Buckets as rows; the query's values are cumulative over `le`."""
    ordered = sorted(lines, key=lambda named: float(named.line.labels["le"]))
    bounds = [float(named.line.labels["le"]) for named in ordered]
    cumulative = np.nan_to_num(np.array([_on_grid(named.line, window) for named in ordered]))
    counts = np.clip(np.diff(cumulative, axis=0, prepend=0.0), 0, None)
    used = np.flatnonzero(counts.max(axis=1) > 1e-9)
    low, high = (int(used[0]), int(used[-1])) if used.size else (0, len(bounds) - 1)
    shown = np.where(counts > 1e-9, counts, np.nan)[low : high + 1]
    edges = np.append(_grid(window), window.end_s + window.step_s)
    mesh = axis.pcolormesh(
        _minutes(edges, window), np.arange(low, high + 2), shown, cmap="Blues", vmin=0, linewidth=0
    )
    scale = scale_for(panel.unit, max(bound for bound in [*bounds[: high + 1], 0.0] if np.isfinite(bound)))
    every = -(-(high - low + 2) // 7)
    ticks = np.arange(low, high + 2, every)
    axis.set_yticks(ticks, [_bound(bounds, int(tick) - 1, scale.divisor) for tick in ticks])
    axis.set_ylabel(scale.label, fontsize=8, color=INK)
    bar = axis.figure.colorbar(mesh, ax=axis, pad=0.01, aspect=30)
    bar.ax.tick_params(labelsize=7, colors=INK, length=2)
    bar.outline.set_visible(False)
    bar.set_label("1 / s", fontsize=7.5, color=INK)


def _bound(bounds: list[float], index: int, divisor: float) -> str:
    if index < 0:
        return "0"
    return "∞" if np.isinf(bounds[index]) else f"{bounds[index] / divisor:g}"


def _finish(axis: Any, label: str, num_lines: int) -> None:
    top = axis.dataLim.y1
    axis.set_ylim(0, 1.08 * top if top > 1e-12 else 1)
    axis.set_ylabel(label, fontsize=8, color=INK)
    axis.grid(axis="y", color=GRID, linewidth=0.6)
    axis.set_axisbelow(True)
    handles, names = axis.get_legend_handles_labels()
    names = [name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 1]}…" for name in names]
    if num_lines > MAX_LEGEND:
        names[MAX_LEGEND - 1] += f"  (+{num_lines - MAX_LEGEND} more)"
    widest = max(len(name) for name in names[:MAX_LEGEND])
    axis.legend(
        handles[:MAX_LEGEND],
        names[:MAX_LEGEND],
        loc="upper left",
        bbox_to_anchor=(0, -0.1),
        ncol=max(1, min(num_lines, LEGEND_CHARACTERS // axis.get_gridspec().ncols // (widest + 6))),
        fontsize=7,
        frameon=False,
        handlelength=1.6,
        columnspacing=1.2,
        borderaxespad=0.2,
        labelcolor=INK,
    )


def _grid(window: Window) -> NDArray[np.float64]:
    num_steps = int((window.end_s - window.start_s) / window.step_s + 1e-6)
    return np.asarray(window.start_s + window.step_s * np.arange(num_steps + 1), dtype=np.float64)


def _on_grid(line: Line, window: Window) -> NDArray[np.float64]:
    """Values at every step of the window, NaN where there is none."""
    values = np.full(len(_grid(window)), np.nan)
    index = np.rint((np.array(line.times_s) - window.start_s) / window.step_s).astype(int)
    inside = (index >= 0) & (index < len(values))
    values[index[inside]] = np.array(line.values)[inside]
    return values


def _with_gaps(line: Line, window: Window) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return _minutes(_grid(window), window), _on_grid(line, window)
