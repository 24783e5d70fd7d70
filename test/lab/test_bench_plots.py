"""Pictures show the numbers that they are given. The numbers here are made up for the test."""

from __future__ import annotations

import copy
from collections.abc import Callable
from io import BytesIO
from typing import Any

import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from sglang_layered_lab.bench import plots

BOTH = {"worst_tbt_s": True, "p99_tbt_s": True}
NONE = {"worst_tbt_s": False, "p99_tbt_s": False}


def point(mode: str, label: str, ttft_s: float, worst_s: float, p99_s: float, front: dict) -> dict:
    place = {"ttft_s": ttft_s, "worst_tbt_s": worst_s, "p99_tbt_s": p99_s}
    return {"mode": mode, "label": label, **place, "on_front": front}


POINTS = [
    point("default", "8192", 2.0, 2.4, 1.9, {"worst_tbt_s": True, "p99_tbt_s": False}),
    point("mixed", "512", 4.9, 0.62, 0.55, NONE),
    point("mixed", "1024", 3.6, 0.95, 0.85, NONE),
    point("mixed", "2048", 2.8, 1.6, 1.45, NONE),
    point("pdmux", "pdmux", 3.3, 1.2, 0.7, NONE),
    point("layered", "G=2", 2.1, 1.3, 1.2, BOTH),
    point("layered", "G=4", 2.4, 0.75, 0.7, BOTH),
    point("layered", "G=8", 3.0, 0.5, 0.42, BOTH),
]
CURVES = [
    {
        "mode": "mixed",
        "label": "mixed, chunk 512",
        "load.rate_per_s": [1.3, 1.4, 1.5, 1.6],
        "attainment": [1.0, 0.97, 0.5, 0.1],
        "attainment_low": [0.97, 0.9, 0.4, 0.05],
        "attainment_high": [1.0, 0.99, 0.6, 0.2],
        "decode_batch": [13, 15, 28, 53],
    },
    {
        "mode": "mixed",
        "label": "mixed, chunk 2048",
        "load.rate_per_s": [1.3, 1.4, 1.5, 1.6],
        "attainment": [0.4, 0.3, 0.2, 0.1],
        "decode_batch": [11, 13, 22, 40],
    },
    {
        "mode": "layered",
        "label": "layered, paper policy",
        "load.rate_per_s": [1.3, 1.4, 1.5, 1.6],
        "attainment": [1.0, 1.0, 0.99, 0.93],
        "decode_batch": [8, 10, 11, 14],
    },
]
STREAMS = [
    {"mode": "whole", "label": "whole prompt", "times_s": [1.0, 1.1, 2.4, 2.5], "num_tokens": [1, 4, 6, 9]},
    {"mode": "layered", "label": "layered", "times_s": [1.2, 1.5, 1.8, 2.1], "num_tokens": [1, 3, 6, 9]},
]
BYTES = [
    {"label": "mixed 512", "prompt": 2.5e9, "hybrid": 6.1e9, "decode": 0.9e9, "expert_bytes": 9.5e9},
    {"label": "layered, 5 groups", "prompt": 0.0, "hybrid": 1.9e9, "decode": 1.9e9, "expert_bytes": 3.8e9},
    {"label": "whole", "prompt": 2.0e9, "hybrid": 0.0, "decode": 1.1e9, "expert_bytes": 3.1e9},
]
JOULES = ("joules_prompt", "joules_output", "joules_total")
ENERGY = [
    {
        "mode": "mixed",
        "label": "mixed 512",
        **dict(zip(JOULES, (0.060, 1.2, 0.0571), strict=True)),
        **dict(zip((f"{name}_low" for name in JOULES), (0.057, 1.1, 0.055), strict=True)),
        **dict(zip((f"{name}_high" for name in JOULES), (0.063, 1.3, 0.059), strict=True)),
    },
    {
        "mode": "layered",
        "label": "layered",
        **dict(zip(JOULES, (0.046, 0.9, 0.0438), strict=True)),
    },
]


def attainment(given: list[dict[str, Any]], title: str) -> Figure:
    return plots.attainment(pd.concat(map(pd.DataFrame, given)), "attainment", title)


def expert_bytes(given: list[dict[str, Any]], title: str) -> Figure:
    return plots.expert_bytes(pd.DataFrame(given), title)


def energy(given: list[dict[str, Any]], title: str) -> Figure:
    return plots.energy(pd.DataFrame(given), title)


DRAWN: dict[str, tuple[Callable[..., Figure], list[dict[str, Any]]]] = {
    "pareto": (plots.pareto, POINTS),
    "attainment": (attainment, CURVES),
    "tokens": (plots.tokens_over_time, STREAMS),
    "bytes": (expert_bytes, BYTES),
    "energy": (energy, ENERGY),
}


def words(figure: Figure) -> set[str]:
    figure.draw_without_rendering()
    return {text.get_text() for text in figure.findobj(match=lambda artist: hasattr(artist, "get_text"))}


@pytest.mark.parametrize("name", DRAWN)
def test_a_picture_names_its_arms_and_leaves_its_input_alone(name: str) -> None:
    draw, given = DRAWN[name]
    before = copy.deepcopy(given)
    figure = draw(given, "The title")
    assert {arm["label"] for arm in given} | {"The title"} <= words(figure)
    assert given == before
    target = BytesIO()
    figure.savefig(target, dpi=60)
    colours = Image.open(target).convert("RGB").getcolors(maxcolors=1 << 24)
    assert len(colours) > 20  # more than an empty frame


def test_pareto_points_lie_where_they_were_measured() -> None:
    worst, p99 = plots.pareto(POINTS, "t").axes
    for axis, key in ((worst, "worst_tbt_s"), (p99, "p99_tbt_s")):
        drawn = [tuple(dots.get_offsets()[0]) for dots in axis.collections]
        assert sorted(drawn) == sorted((each[key], each["ttft_s"]) for each in POINTS)
        on_front = sorted((each[key], each["ttft_s"]) for each in POINTS if each["on_front"][key])
        assert [tuple(place) for place in axis.lines[0].get_xydata()] == on_front


def test_attainment_has_the_target_line_and_a_second_panel_for_batches() -> None:
    upper, lower = attainment(CURVES, "t").axes
    assert [list(line.get_ydata()) for line in upper.lines[:3]] == [each["attainment"] for each in CURVES]
    assert list(upper.lines[3].get_ydata()) == [0.9, 0.9]
    assert [list(line.get_ydata()) for line in lower.lines] == [each["decode_batch"] for each in CURVES]
    assert len(upper.collections) == 1  # only the first arm has intervals


def test_arms_of_one_mode_share_its_colour_and_differ_in_style() -> None:
    first, second, other, _ = attainment(CURVES, "t").axes[0].lines
    assert first.get_color() == second.get_color() != other.get_color()
    assert first.get_linestyle() != second.get_linestyle()


def test_unknown_modes_get_colours_of_their_own() -> None:
    strange = [{**STREAMS[0], "mode": f"mode {index}"} for index in range(4)]
    lines = plots.tokens_over_time(strange, "t").axes[0].lines
    assert len({line.get_color() for line in lines}) == 4


def test_a_stream_begins_with_no_token_at_its_due_time() -> None:
    line = plots.tokens_over_time(STREAMS, "t").axes[0].lines[0]
    assert [tuple(place) for place in line.get_xydata()] == [(0, 0), (1.0, 1), (1.1, 4), (2.4, 6), (2.5, 9)]


def test_bytes_are_stacked_in_gigabytes_and_the_total_is_the_given_one() -> None:
    figure = expert_bytes([{**BYTES[0], "expert_bytes": 7.7e9}], "t")
    bars = figure.axes[0].patches
    assert [(bar.get_x(), bar.get_width()) for bar in bars] == [
        (0.0, pytest.approx(2.5)),
        (pytest.approx(2.5), pytest.approx(6.1)),
        (pytest.approx(8.6), pytest.approx(0.9)),
    ]
    assert "7.7" in words(figure)
    assert "1234" in words(expert_bytes([{**BYTES[0], "expert_bytes": 1234.4e9}], "t"))


def test_energy_is_in_millijoules_with_its_interval() -> None:
    figure = energy(ENERGY, "t")
    assert [axis.get_xlabel() for axis in figure.axes] == [
        "mJ per prompt token",
        "mJ per output token",
        "mJ per token",
    ]
    assert [bar.get_width() for bar in figure.axes[2].patches] == [pytest.approx(57.1), pytest.approx(43.8)]
    [ends] = figure.axes[2].collections[0].get_segments()
    assert ends.tolist() == [pytest.approx([55, 0]), pytest.approx([59, 0])]
