"""Draws the whole dashboard as one picture, with the queries that Grafana gets."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt

from sglang_layered_lab.dashboard.axes import INK, QUIET, NamedLine, draw_panel, legend_of
from sglang_layered_lab.dashboard.model import Choice, Panel, Row
from sglang_layered_lab.dashboard.prometheus import Prometheus, Window, rate_interval_s

WIDTH_IN, LINE_IN, TITLE_IN, HEAD_IN = 14.0, 2.35, 0.4, 0.5
DPI = 120
TITLE_INK = "#1f6fb4"


def draw(
    prometheus: Prometheus,
    title: str,
    rows: tuple[Row, ...],
    choice: Choice,
    window: Window,
    path: Path,
    rate_s: float | None = None,
) -> list[str]:
    """Write the picture as PNG; return the titles of the panels without data.

    Rates are taken over `rate_s` seconds; without it over as many as Grafana would take.
    """
    rate_s = rate_s or rate_interval_s(prometheus.scrape_interval_s(), window.step_s)
    found = [[named_lines(prometheus, panel, choice, window, rate_s) for panel in row.panels] for row in rows]
    heights_in = [
        TITLE_IN + (LINE_IN * _num_lines(row) if any(lines) else 0.0)
        for row, lines in zip(rows, found, strict=True)
    ]
    figure = plt.figure(figsize=(WIDTH_IN, HEAD_IN + sum(heights_in)), layout="constrained")
    try:
        head, *bands = figure.subfigures(1 + len(rows), 1, height_ratios=[HEAD_IN, *heights_in])
        _head(head, title, window)
        for band, row, lines in zip(bands, rows, found, strict=True):
            _row(band, row, lines, window)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=DPI, facecolor="white")
    finally:
        plt.close(figure)
    return [
        panel.title
        for row, of_row in zip(rows, found, strict=True)
        for panel, lines in zip(row.panels, of_row, strict=True)
        if not lines
    ]


def named_lines(
    prometheus: Prometheus, panel: Panel, choice: Choice, window: Window, rate_s: float
) -> list[NamedLine]:
    """All lines of a panel, in the order of its queries and then by name."""
    named: list[NamedLine] = []
    for query in panel.queries:
        lines = prometheus.lines(choice.filled(query.expr, rate_s), window)
        of_query = [NamedLine(legend_of(query.legend, line.labels), line, query.dashed) for line in lines]
        named += sorted(of_query, key=lambda line: line.name)
    return named


def _num_lines(row: Row) -> int:
    return -(-len(row.panels) // row.columns)


def _head(head: Any, title: str, window: Window) -> None:
    end = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(window.end_s))
    minutes = (window.end_s - window.start_s) / 60
    head.text(0.006, 0.5, title, fontsize=16, fontweight="bold", color=INK, va="center")
    note = f"{minutes:g} minutes to {end}  ·  horizontal axes: minutes before that"
    head.text(0.994, 0.5, note, fontsize=9, color=QUIET, va="center", ha="right")


def _row(band: Any, row: Row, found: list[list[NamedLine]], window: Window) -> None:
    """Draw a section; one without any data is only named."""
    title = row.title if any(found) else f"{row.title}: no data"
    colour = TITLE_INK if any(found) else QUIET
    band.suptitle(title, x=0.006, ha="left", fontsize=12.5, color=colour, fontweight="bold")
    if not any(found):
        return
    axes = band.subplots(_num_lines(row), row.columns, squeeze=False).flat
    for panel, lines in zip(row.panels, found, strict=True):
        draw_panel(next(axes), panel, lines, window)
    for spare in axes:
        spare.set_axis_off()
