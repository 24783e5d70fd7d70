"""Pictures that many arms share: labels apart, axes that show all values, staircases to their end."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

from sglang_layered_lab.bench import plots
from sglang_layered_lab.bench.plots import LOG_FROM, looks_of, new_figure

NONE = {"worst_tbt_s": False, "p99_tbt_s": False}


def cloud(num_points: int, seed: int) -> list[dict]:
    rng = np.random.default_rng(seed)
    places = rng.uniform(0.5, 1.5, (num_points, 3))
    return [
        {
            "mode": ("mixed", "layered")[index % 2],
            "label": f"arm {index}",
            "ttft_s": float(ttft_s),
            "worst_tbt_s": float(worst_s),
            "p99_tbt_s": float(p99_s),
            "on_front": NONE,
        }
        for index, (ttft_s, worst_s, p99_s) in enumerate(places)
    ]


@pytest.mark.parametrize("seed", range(3))
def test_labels_cover_neither_each_other_nor_points_and_stay_inside(seed: int) -> None:
    points = cloud(14, seed)
    for point in points[:3]:  # three in one place
        point |= {key: points[0][key] for key in ("ttft_s", "worst_tbt_s", "p99_tbt_s")}
    figure = plots.pareto(points, "t")
    for axis, key in zip(figure.axes, ("worst_tbt_s", "p99_tbt_s"), strict=True):
        labels = [each for each in axis.texts if each.get_text().startswith("arm ")]
        boxes = [Text.get_window_extent(label) for label in labels]
        assert len(boxes) == len(points)
        assert not [pair for pair in combinations(boxes, 2) if pair[0].overlaps(pair[1])]
        for point in points:
            place = axis.transData.transform((point[key], point["ttft_s"]))
            assert not any(box.contains(*place) for box in boxes)
        inside = axis.bbox.expanded(1.01, 1.01)
        assert all(inside.contains(*corner) for box in boxes for corner in (box.min, box.max))


@pytest.mark.parametrize(("factor", "scale"), [(LOG_FROM - 1, "linear"), (LOG_FROM + 1, "log")])
def test_values_far_apart_are_drawn_on_a_logarithmic_axis_that_says_so(factor: float, scale: str) -> None:
    points = cloud(2, 0)
    points[0] |= {"worst_tbt_s": 0.1, "ttft_s": 1.0}
    points[1] |= {"worst_tbt_s": 0.1 * factor, "ttft_s": factor}
    worst, _ = plots.pareto(points, "t").axes
    assert (worst.get_xscale(), worst.get_yscale()) == (scale, scale)
    assert ("logarithmic" in worst.get_xlabel()) == ("logarithmic" in worst.get_ylabel()) == (scale == "log")
    low, high = worst.get_xlim()
    assert low < 0.1 and high > 0.1 * factor and (low == 0) == (scale == "linear")


def test_ttft_over_the_rate_draws_every_curve_and_its_interval() -> None:
    curve = {"mode": "mixed", "label": "mixed 512", "load.rate_per_s": [1.0, 2.0], "ttft_mean": [0.5, 0.9]}
    ends = {"ttft_mean_low": [0.4, 0.8], "ttft_mean_high": [0.6, 1.0]}
    shaded = {**curve, "mode": "layered", "label": "layered", **ends}
    rows = pd.concat([pd.DataFrame(curve), pd.DataFrame(shaded)])
    [axis] = plots.ttft_over_rate(rows, "t").axes
    assert [list(line.get_ydata()) for line in axis.lines] == [[0.5, 0.9], [0.5, 0.9]]
    [shade] = axis.collections
    assert {tuple(corner) for corner in shade.get_paths()[0].vertices} >= {(1.0, 0.4), (2.0, 1.0)}
    assert axis.get_ylim()[0] == 0


def test_a_stream_goes_on_to_its_end_and_its_mark_lies_on_it() -> None:
    stream = {"mode": "layered", "label": "a", "times_s": [0.2, 0.4], "num_tokens": [1, 2]}
    marked = {**stream, "mark_s": 0.3, "end_s": 1.0}
    silent = {**stream, "times_s": [], "num_tokens": [], "mark_s": 0.5, "end_s": 1.0}
    [axis] = plots.tokens_over_time([stream, marked, silent], "t", "seconds since something").axes
    ends = [tuple(line.get_xydata()[-1]) for line in axis.lines]
    assert ends == [(0.4, 2), (1.0, 2), (1.0, 0)]
    assert [tuple(dots.get_offsets()[0]) for dots in axis.collections] == [(0.2, 1), (0.3, 1), (0.5, 0)]
    assert axis.get_xlabel() == "seconds since something"


def test_arms_of_one_mode_look_different() -> None:
    looks = looks_of(["layered"] * 7 + ["mixed"])
    assert len({(look["linestyle"], look["marker"]) for look in looks[:7]}) == 7
    assert looks[0]["color"] != looks[7]["color"]


def test_a_long_title_is_broken_and_the_figure_grows() -> None:
    short, long = new_figure(3.0, "a title"), new_figure(3.0, "a long title " * 20)
    assert long.get_figheight() > short.get_figheight()
    assert "\n" in long.get_suptitle() and "\n" not in short.get_suptitle()
