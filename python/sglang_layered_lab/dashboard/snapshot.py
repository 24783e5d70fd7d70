"""A page of the dashboard as a Prometheus has it now: Grafana's JSON, asked and drawn without Grafana."""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from sglang_layered import __version__
from sglang_layered.errors import LabError
from sglang_layered.metrics.table import NEEDS
from sglang_layered_lab.bench.pages import inline, render, themed, write_page
from sglang_layered_lab.bench.pictures import Picture
from sglang_layered_lab.dashboard import drawing
from sglang_layered_lab.dashboard.board import Board, Placed
from sglang_layered_lab.dashboard.definition import Choice, Source, Unit, duration, filled, sources
from sglang_layered_lab.dashboard.drawing import FORMATS, LEVELS, PALETTE, Floats, Line
from sglang_layered_lab.dashboard.prometheus import Prometheus, Series, Window, rate_interval_s
from sglang_layered_lab.watch import text

MAX_POINTS = 240  # of a line: a panel is some 400 pixels wide
ROUND = (1, 2, 5, 10, 15, 20, 30)
STEPS_S = (*ROUND, *(60 * each for each in ROUND), *(3600 * each for each in (1, 2, 3, 6, 12, 24)))


@dataclass(frozen=True, slots=True)
class Entry:
    """A name in a legend with a sample of its colour (CSS), and its last value with the unit."""

    colour: str
    opacity: float
    is_dashed: bool
    label: str
    last: str = ""


@dataclass(frozen=True, slots=True)
class Drawn:
    """A panel of the page; without data `svg` is empty and `needs` says what switches its series on."""

    placed: Placed
    svg: str
    legend: tuple[Entry, ...]
    queries: tuple[str, ...]
    needs: str


def window_of(range_s: float, end_s: float, scrape_s: float) -> Window:
    """The last `range_s` in steps that Grafana would take: round ones, no shorter than a scrape, aligned."""
    wanted = max(range_s / MAX_POINTS, scrape_s)
    step = float(next((step for step in STEPS_S if step >= wanted), 86400 * -(-wanted // 86400)))
    return Window((end_s - range_s) // step * step, end_s // step * step, step)


def write_snapshot(
    prometheus: Prometheus, board: Board, choice: Choice, range_s: float, end_s: float, out: Path
) -> Path:
    """Ask every query of the dashboard over `range_s` up to the Unix time `end_s`, and write the page.

    `out` is the page, or a folder that gets it as `index.html`.

    Raises:
        LabError: Prometheus is not there, scrapes nothing, or refuses a query: then with panel and query.
    """
    scrape_s = prometheus.scrape_interval_s()
    window = window_of(range_s, end_s, scrape_s)
    values = values_of(board, choice, window, scrape_s)
    rows = [
        (row.title, [_drawn(prometheus, placed, values, window) for placed in row.panels])
        for row in board.rows
    ]
    page = render(
        "dashboard.html.j2",
        board=board,
        rows=rows,
        chosen=list(_chosen(prometheus, board, values, window)),
        prometheus=prometheus.url,
        start=_time(window.start_s),
        end=_time(window.end_s),
        step=text.seconds(window.step_s),
        rate=text.seconds(rate_interval_s(scrape_s, window.step_s)),
        version=__version__,
    )
    return write_page(out, page)


def values_of(board: Board, choice: Choice, window: Window, scrape_s: float) -> dict[str, str]:
    """A value for each variable that a query may have."""
    range_s = window.end_s - window.start_s
    return {
        **{variable.name: variable.all_values for variable in board.variables},
        **choice.values(),
        "__interval": duration(window.step_s),
        "__interval_ms": f"{round(1000 * window.step_s)}",
        "__rate_interval": duration(rate_interval_s(scrape_s, window.step_s)),
        "__range": duration(range_s),
        "__range_s": f"{round(range_s)}",
        "__range_ms": f"{round(1000 * range_s)}",
    }


def _drawn(prometheus: Prometheus, placed: Placed, values: Mapping[str, str], window: Window) -> Drawn:
    panel = placed.panel
    queries = tuple(filled(query.expr, values) for query in panel.queries)
    found = []
    for number, query in enumerate(queries, start=1):
        try:
            found.append(prometheus.series(query, window))
        except LabError as error:
            raise LabError(f"panel {panel.title!r}, query {number}: {error}") from error
    times_s = window.start_s + window.step_s * np.arange(window.num_points, dtype=np.float64)
    draw = _heat if panel.kind == "heatmap" else _lines
    svg, legend = draw(placed, found, times_s)
    needed = [_switch(source) for source in sorted(set().union(*map(sources, queries)) - {"any"})]
    return Drawn(placed, svg, tuple(legend), queries, ", ".join(needed))


def _switch(source: Source) -> str:
    return "SGLang's router" if source == "router" else NEEDS[source]


def _lines(placed: Placed, found: list[list[Series]], times_s: Floats) -> tuple[str, list[Entry]]:
    panel, lines = placed.panel, list[Line]()
    for query, series in zip(panel.queries, found, strict=True):
        for each in series:
            values = np.array(each.values)
            values[~np.isfinite(values)] = np.nan
            if not np.isnan(values).all():
                colour = PALETTE[len(lines) % len(PALETTE)]
                lines.append(Line(_legend(query.legend, each.labels), colour, query.dashed, values))
    if not lines:
        return "", []
    draw = partial(drawing.draw_lines, lines, times_s, panel.unit, panel.kind, placed.width)
    legend = [
        Entry(
            themed(line.colour), 1.0, line.is_dashed, line.label, _number(float(line.values[-1]), panel.unit)
        )
        for line in lines
    ]
    return _inline(placed, draw), legend


def _heat(placed: Placed, found: list[list[Series]], times_s: Floats) -> tuple[str, list[Entry]]:
    heat = drawing.buckets({float(each.labels["le"]): each.values for series in found for each in series})
    if heat.top <= drawing.NOTHING_BELOW:
        return "", []
    draw = partial(drawing.draw_heat, heat, times_s, placed.panel.unit, placed.width)
    show = FORMATS[placed.cell_unit]
    legend = [
        Entry(themed(drawing.HEAT), drawing.shade(level), False, f"up to {show(heat.top * level / LEVELS)}")
        for level in (LEVELS // 4, LEVELS // 2, LEVELS)
    ]
    return _inline(placed, draw), legend


def _legend(form: str, labels: Mapping[str, str]) -> str:
    return re.sub(r"\{\{\s*(\w+)\s*\}\}", lambda found: labels.get(found[1], ""), form)


def _number(value: float, unit: Unit) -> str:
    return FORMATS[unit](value) if math.isfinite(value) else "no value"


def _inline(placed: Placed, draw: Callable[[], Figure]) -> str:
    return inline(Picture(f"panel-{placed.number}", f"{placed.panel.title}, over time", "", draw))


def _chosen(
    prometheus: Prometheus, board: Board, values: Mapping[str, str], window: Window
) -> Iterator[tuple[str, str]]:
    """Title of each variable, and what it chose: the expression and the values that it found."""
    for each in board.variables:
        selector = f'{each.metric}{{{each.label}=~"{values[each.name]}"}}'
        found = ", ".join(prometheus.label_values(each.label, selector, window)) or "none found"
        is_all = values[each.name] == each.all_values
        yield each.title, found if is_all else f"{found} (chosen by {values[each.name]})"


def _time(time_s: float) -> str:
    return datetime.fromtimestamp(time_s, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
