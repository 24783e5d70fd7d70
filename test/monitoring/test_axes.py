"""One panel on matplotlib axes, from lines given by hand."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from sglang_layered_lab.dashboard.axes import MAX_LEGEND, MODE_SHADES, NamedLine, draw_panel
from sglang_layered_lab.dashboard.model import Kind, Panel, Query
from sglang_layered_lab.dashboard.prometheus import Line, Window

WINDOW = Window(start_s=1000, end_s=1120, step_s=10)
TIMES_S = tuple(1000.0 + 10 * index for index in range(13))


@pytest.fixture
def axis() -> Iterator[Axes]:
    figure, axis = plt.subplots()
    yield axis
    plt.close(figure)


def panel(kind: Kind = "lines", unit="s") -> Panel:
    return Panel("A title", unit, "What it shows.", (Query("up", "up"),), kind)


def named(name: str, values, times_s=TIMES_S, dashed: bool = False, **labels: str) -> NamedLine:
    return NamedLine(name, Line(labels, tuple(times_s), tuple(values)), dashed)


def test_without_lines_it_says_no_data(axis: Axes) -> None:
    draw_panel(axis, panel(), [], WINDOW)
    assert [text.get_text() for text in axis.texts] == ["no data"]
    assert axis.get_title(loc="left") == "A title"


def test_lines_are_scaled_to_their_unit_over_minutes_before_the_end(axis: Axes) -> None:
    draw_panel(axis, panel(), [named("fast", [0.02] * 13), named("slow", [0.2] * 13, dashed=True)], WINDOW)
    fast, slow = axis.lines
    assert axis.get_ylabel() == "ms"
    assert np.allclose(fast.get_ydata(), 20) and np.allclose(slow.get_ydata(), 200)
    assert np.allclose(fast.get_xdata(), np.linspace(-2, 0, 13))
    assert (fast.get_linestyle(), slow.get_linestyle()) == ("-", "--")
    assert axis.get_ylim() == pytest.approx((0, 216))


def test_a_gap_in_the_data_stays_a_gap(axis: Axes) -> None:
    draw_panel(axis, panel("steps"), [named("up", [1.0, 1.0], times_s=(1000, 1120))], WINDOW)
    (line,) = axis.lines
    assert np.isfinite(line.get_ydata()).tolist() == [True] + [False] * 11 + [True]
    assert line.get_drawstyle() == "steps-post"


def test_two_modes_have_two_hues_and_one_mode_has_none(axis: Axes) -> None:
    both = [
        named(f"{mode} {level}", [1.0] * 13, mode=mode)
        for mode in ("chunked", "layered")
        for level in ("p50", "p99")
    ]
    draw_panel(axis, panel(), both, WINDOW)
    shades = [MODE_SHADES[mode][index] for mode in ("chunked", "layered") for index in range(2)]
    assert [line.get_color() for line in axis.lines] == shades


def test_stacked_areas_lie_on_each_other(axis: Axes) -> None:
    draw_panel(
        axis, panel("stacked", "short"), [named("done", [2.0] * 13), named("left", [3.0] * 13)], WINDOW
    )
    tops = [area.get_paths()[0].vertices[:, 1].max() for area in axis.collections]
    assert tops == [2, 5]


def test_a_heatmap_shows_what_each_bucket_adds(axis: Axes) -> None:
    cumulative = {"0.1": 1.0, "0.2": 1.0, "0.4": 4.0, "+Inf": 4.0}
    lines = [named(le, [count] * 13, le=le) for le, count in reversed(cumulative.items())]
    draw_panel(axis, panel("heatmap"), lines, WINDOW)
    cells = np.asarray(axis.collections[0].get_array().filled(np.nan))
    assert cells.shape == (3, 13)
    assert np.allclose(cells[:, 0], [1, np.nan, 3], equal_nan=True)
    assert [label.get_text() for label in axis.get_yticklabels()] == ["0", "100", "200", "400"]
    assert axis.get_ylabel() == "ms"


def test_a_long_legend_is_cut_and_says_so(axis: Axes) -> None:
    draw_panel(axis, panel(), [named(f"line {index}", [1.0] * 13) for index in range(11)], WINDOW)
    names = [text.get_text() for text in axis.get_legend().get_texts()]
    assert len(names) == MAX_LEGEND and names[-1] == "line 7  (+3 more)"
