"""Draws the panels of the dashboard's page with matplotlib. It knows no Prometheus, no Grafana and no HTML.

Figures are small, 0.45 inches for a column of Grafana's 24, since a page shows up to four side by side; names
of lines stand in the page, where they can wrap and be searched. Draw within `rc_context(plots.STYLE)`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter, date2num
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from sglang_layered_lab.bench.plots import COLOURS, MARK, SPARE_COLOURS
from sglang_layered_lab.dashboard.definition import Kind, Unit
from sglang_layered_lab.watch import text

Floats = NDArray[np.float64]

# Prometheus sorts by labels: of two lines the first is that of chunked servers, in its colour of reports.
PALETTE = (COLOURS["mixed"], COLOURS["layered"], *SPARE_COLOURS, COLOURS["pdmux"], MARK, COLOURS["whole"])
HEAT = COLOURS["layered"]
LEVELS = 8  # shades of a heat map
NOTHING_BELOW = 1e-9  # as the dashboard's heat maps have it
COLUMN_IN, WIDEST_IN, HEIGHT_IN = 0.45, 4.2, 1.75
LEFT_IN, RIGHT_IN, TOP_IN, BOTTOM_IN = 0.58, 0.08, 0.08, 0.24
LETTER_IN = 0.07
NUM_TICKS = 5


def _size(value: float, per: str = "") -> str:
    return text.size(value, per).replace(".0 ", " ").replace("bytes", "B")


FORMATS: Mapping[Unit, Callable[[float], str]] = {
    "s": text.seconds,
    "bytes": _size,
    "Bps": lambda value: _size(value, "/s"),
    "watt": lambda value: text.plain(value, "W"),
    "joule": lambda value: text.plain(value, "J"),
    "percentunit": text.percent,
    "short": text.plain,
    "reqps": lambda value: text.plain(value, "req/s"),
    "ops": lambda value: text.plain(value, "/s"),
}


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a panel; `values` are one a point of time, NaN where there is none."""

    label: str
    colour: str
    is_dashed: bool
    values: Floats


@dataclass(frozen=True, slots=True)
class Heat:
    """Buckets of a heat map: their upper bounds, and observations per second by bucket and point of time."""

    bounds: tuple[float, ...]
    cells: Floats

    @property
    def top(self) -> float:
        """The most that a cell has."""
        return float(self.cells.max(initial=0.0))


def buckets(cumulative: Mapping[float, Sequence[float]]) -> Heat:
    """Rates of a histogram's buckets by upper bound, each with those below it in it, as one's own rates."""
    bounds = tuple(sorted(cumulative))
    sums = np.nan_to_num([cumulative[bound] for bound in bounds], nan=0.0, posinf=0.0)
    return Heat(bounds, np.clip(np.diff(sums, axis=0, prepend=0.0), 0.0, None))


def shade(level: int) -> float:
    """Opacity of a heat map's level, from 1 to `LEVELS`."""
    return 0.1 + 0.9 * level / LEVELS


def draw_lines(lines: Sequence[Line], times_s: Floats, unit: Unit, kind: Kind, width: int) -> Figure:
    """Draw lines over time from 0 up; `width` in Grafana's columns, Unix times in seconds."""
    figure, axis, days = _axes(times_s, width)
    look: dict[str, Any] = {} if kind == "lines" else {"drawstyle": "steps-post"}
    below = np.zeros(len(times_s))
    for line in lines:
        values = line.values
        if kind == "stacked":
            values = below + values
            axis.fill_between(days, below, values, step="post", color=line.colour, alpha=0.4, linewidth=0)
            below = np.where(np.isnan(values), below, values)
        style = (0, (5, 3)) if line.is_dashed else "-"
        axis.plot(days, values, color=line.colour, linestyle=style, linewidth=1.3, **look)
        alone = _alone(values)
        axis.plot(days[alone], values[alone], color=line.colour, marker="o", markersize=2.5, linestyle="")
    axis.set_ylim(0, axis.get_ylim()[1] if axis.dataLim.y1 > 0 else 1)
    is_count = unit == "short" and kind != "lines"
    axis.yaxis.set_major_locator(MaxNLocator(NUM_TICKS, steps=(1, 2, 5, 10), integer=is_count))
    _name_ticks(figure, axis, FORMATS[unit])
    return figure


def _alone(values: Floats) -> NDArray[np.bool_]:
    """Points with no neighbour, of which a line shows nothing."""
    known = np.pad(np.isfinite(values), 1)
    return np.asarray(known[1:-1] & ~known[:-2] & ~known[2:], dtype=np.bool_)


def draw_heat(heat: Heat, times_s: Floats, unit: Unit, width: int) -> Figure:
    """Draw a heat map of buckets; those above and below all observations are left out."""
    figure, axis, days = _axes(times_s, width)
    filled = np.flatnonzero((heat.cells > NOTHING_BELOW).any(axis=1))
    low, high = int(filled[0]), int(filled[-1]) + 1
    levels = np.where(heat.cells > NOTHING_BELOW, np.ceil(heat.cells / heat.top * LEVELS), 0)
    step = days[1] - days[0] if len(days) > 1 else 1.0
    for level in range(1, LEVELS + 1):
        found = np.argwhere(levels == level)
        if len(found):
            corners = [_corners(days[column] - step, days[column], bucket) for bucket, column in found]
            cells = Path.make_compound_path_from_polys(np.array(corners))
            axis.add_patch(PathPatch(cells, facecolor=HEAT, alpha=shade(level), linewidth=0))
    edges = [0.0, *heat.bounds]
    every = -(-(high - low) // NUM_TICKS)
    axis.set_ylim(low, high)
    axis.yaxis.set_major_locator(FixedLocator(range(low, high + 1, every)))
    _name_ticks(figure, axis, lambda value: _edge(edges[round(value)], unit))
    return figure


def _corners(left: float, right: float, bucket: float) -> list[tuple[float, float]]:
    return [(left, bucket), (right, bucket), (right, bucket + 1), (left, bucket + 1)]


def _edge(value: float, unit: Unit) -> str:
    return FORMATS[unit](value) if np.isfinite(value) else "∞"


def _axes(times_s: Floats, width: int) -> tuple[Figure, Any, Floats]:
    """A figure with one axis of time, and the times in matplotlib's days."""
    figure = Figure(figsize=(min(COLUMN_IN * width, WIDEST_IN), HEIGHT_IN))
    axis = figure.subplots()
    days = np.asarray(date2num((1000 * times_s).astype("datetime64[ms]")), dtype=np.float64)
    locator = AutoDateLocator(minticks=2, maxticks=NUM_TICKS)
    axis.xaxis.set_major_locator(locator)
    axis.xaxis.set_major_formatter(ConciseDateFormatter(locator, show_offset=False))
    axis.set_xlim(days[0], days[-1])
    axis.grid(axis="both")
    axis.tick_params(length=2)
    return figure, axis, days


def _name_ticks(figure: Figure, axis: Any, name: Callable[[float], str]) -> None:
    """Name the ticks of the y axis, and leave room for them: the same in every panel, more for long names."""
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: name(value)))
    low, high = axis.get_ylim()
    longest = max((len(name(value)) for value in axis.get_yticks() if low <= value <= high), default=0)
    width_in = figure.get_figwidth()
    figure.subplots_adjust(
        left=max(LEFT_IN, 0.1 + LETTER_IN * longest) / width_in,
        right=1 - RIGHT_IN / width_in,
        bottom=BOTTOM_IN / HEIGHT_IN,
        top=1 - TOP_IN / HEIGHT_IN,
    )
