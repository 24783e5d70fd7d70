"""Reads the dashboard from its Grafana JSON: rows of panels in their places, and variables to choose by.

It takes what `dashboard write` writes and refuses a panel of another type, so that no page lacks one.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sglang_layered.errors import LabError
from sglang_layered_lab.dashboard.definition import Kind, Panel, Query, Unit

TYPES = ("timeseries", "heatmap")


@dataclass(frozen=True, slots=True)
class Placed:
    """A panel in its place: the first of `width` columns out of 24 is `x`, from 0.

    `cell_unit` is that of a heat map's colours.
    """

    panel: Panel
    number: int
    x: int
    width: int
    cell_unit: Unit = "short"


@dataclass(frozen=True, slots=True)
class PlacedRow:
    """A section of the dashboard with its panels from left to right, line by line."""

    title: str
    panels: tuple[Placed, ...]


@dataclass(frozen=True, slots=True)
class Variable:
    """What can be chosen: the values that `label` has in the series `metric`."""

    name: str
    title: str
    metric: str
    label: str
    all_values: str


@dataclass(frozen=True, slots=True)
class Board:
    """The dashboard as Grafana reads it."""

    title: str
    description: str
    variables: tuple[Variable, ...]
    rows: tuple[PlacedRow, ...]


def read_board(text: str) -> Board:
    """Read Grafana's JSON.

    Raises:
        LabError: a panel has a type that is none of `TYPES`.
    """
    board = json.loads(text)
    variables = tuple(_variable(each) for each in board["templating"]["list"] if each["type"] == "query")
    return Board(board["title"], board["description"], variables, tuple(_rows(board["panels"])))


def _variable(found: Mapping[str, Any]) -> Variable:
    asked = re.fullmatch(r"label_values\(([\w:]+), (\w+)\)", found["query"]["query"])
    assert asked is not None, found["query"]  # the form that `dashboard write` gives it
    return Variable(found["name"], found["label"], asked[1], asked[2], found["allValue"])


def _rows(panels: list[dict[str, Any]]) -> Iterator[PlacedRow]:
    title, placed = "", []
    for panel in sorted(panels, key=lambda each: (each["gridPos"]["y"], each["gridPos"]["x"])):
        if panel["type"] != "row":
            placed.append(_placed(panel))
            continue
        if placed:
            yield PlacedRow(title, tuple(placed))
        title, placed = panel["title"], [_placed(each) for each in panel["panels"]]  # of a row that is folded
    if placed:
        yield PlacedRow(title, tuple(placed))


def _placed(found: Mapping[str, Any]) -> Placed:
    if found["type"] not in TYPES:
        known = " and ".join(TYPES)
        raise LabError(f"panel {found['title']!r} has the type {found['type']}; only {known} can be drawn")
    is_heat = found["type"] == "heatmap"
    defaults = found.get("fieldConfig", {}).get("defaults", {})
    dashed = _dashed(found)
    queries = tuple(
        Query(each["expr"], each["legendFormat"], each["refId"] in dashed) for each in found["targets"]
    )
    unit = found["options"]["yAxis"]["unit"] if is_heat else defaults["unit"]
    kind: Kind = "heatmap" if is_heat else _kind(defaults["custom"])
    panel = Panel(found["title"], unit, found["description"], queries, kind)
    place = found["gridPos"]
    cell_unit = found["options"]["cellValues"]["unit"] if is_heat else unit
    return Placed(panel, found["id"], place["x"], place["w"], cell_unit)


def _kind(custom: Mapping[str, Any]) -> Kind:
    if custom.get("stacking", {}).get("mode") == "normal":
        return "stacked"
    return "steps" if custom.get("lineInterpolation") == "stepAfter" else "lines"


def _dashed(found: Mapping[str, Any]) -> set[str]:
    """Queries, by their letters, whose lines an override makes dashed."""
    overrides = found.get("fieldConfig", {}).get("overrides", [])
    return {
        each["matcher"]["options"]
        for each in overrides
        for change in each["properties"]
        if change["id"] == "custom.lineStyle" and change["value"]["fill"] == "dash"
    }
