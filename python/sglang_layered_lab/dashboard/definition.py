"""The dashboard as data: rows of panels with queries, read from panels.toml. It knows no Grafana and no HTTP.

Queries hold the variables `$instance`, `$model`, `$mode` and `$__rate_interval`. Grafana fills them in;
`filled` does it for Prometheus' own API.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import tomlkit
from pydantic import ConfigDict, TypeAdapter
from pydantic.dataclasses import dataclass

from sglang_layered.metrics.table import METRICS, PREFIX, Needs

# Grafana's ids of units. "reqps" and "ops" are per second; "percentunit" is a part of 1.
Unit = Literal["s", "bytes", "Bps", "watt", "joule", "percentunit", "short", "reqps", "ops"]
Kind = Literal["lines", "stacked", "steps", "heatmap"]
Source = Needs | Literal["router"]

SOURCES: tuple[Source, ...] = ("layered", "learns", "paces", "any", "experts", "energy", "slo", "router")
STRICT = ConfigDict(extra="forbid")
_NAME = re.compile(r"\b(?:[a-z_]+:[a-z0-9_:]+|smg_[a-z0-9_]+|up)\b")
_VARIABLE = re.compile(r"\$(\w+)|\$\{(\w+)(?::\w+)?\}|\[\[(\w+)\]\]")
_SELECTOR = re.compile(_NAME.pattern + r"(?:\{[^{}]*\})?")
_NEEDS = {PREFIX + metric.name: metric.needs for metric in METRICS}


def metric_names(expr: str) -> set[str]:
    """Names of the series that a PromQL expression reads."""
    return set(_NAME.findall(re.sub(r'"[^"]*"', '""', expr)))


def base_name(series: str) -> str:
    """Name of the metric that a series belongs to: without a histogram's `_bucket`, `_sum` or `_count`."""
    return re.sub(r"_(bucket|sum|count)$", "", series)


def selectors(expr: str) -> list[str]:
    """Series selectors of a PromQL expression, once each, in order of appearance."""
    return list(dict.fromkeys(_SELECTOR.findall(expr)))


def sources(expr: str) -> set[Source]:
    """What must be switched on for a query to have data; `any` means nothing more than metrics."""
    names = metric_names(expr)
    found: set[Source] = {_NEEDS[base_name(name)] for name in names if base_name(name) in _NEEDS}
    if any(name.startswith(("slo:", "model_slo:")) for name in names):
        found.add("slo")
    if any(name.startswith("smg_") for name in names):
        found.add("router")
    return found or {"any"}


@dataclass(frozen=True, slots=True, config=STRICT)
class Query:
    """One PromQL expression and the name of its lines, with labels in `{{ }}`; `dashed` to compare with."""

    expr: str
    legend: str
    dashed: bool = False


@dataclass(frozen=True, slots=True, config=STRICT)
class Panel:
    """One picture of the dashboard; the unit is that of the queries' values, for a heatmap of its buckets.

    `steps` are values that hold from one scrape to the next; 0 and 1 are no and yes.
    """

    title: str
    unit: Unit
    description: str
    queries: tuple[Query, ...]
    kind: Kind = "lines"


@dataclass(frozen=True, slots=True, config=STRICT)
class Row:
    """A titled section with `columns` panels a line; 24 can be divided by `columns`."""

    title: str
    panels: tuple[Panel, ...]
    columns: int = 3


@dataclass(frozen=True, slots=True)
class Choice:
    """Values of the variables: regular expressions over labels; the default takes everything."""

    instance: str = ".*"
    model: str = ".*"
    mode: str = ".*"

    def values(self) -> dict[str, str]:
        """The expressions by variable, as they stand between quotation marks in a query."""
        chosen = {"instance": self.instance, "model": self.model, "mode": self.mode}
        return {name: re.sub(r'(["\\])', r"\\\1", value) for name, value in chosen.items()}

    def filled(self, expr: str, rate_interval_s: float) -> str:
        """Return `expr` with every variable replaced."""
        return filled(expr, {**self.values(), "__rate_interval": duration(rate_interval_s)})


def filled(expr: str, values: Mapping[str, str]) -> str:
    """`expr` with a value for every `$name`, `${name}`, `${name:format}` and `[[name]]`."""
    return _VARIABLE.sub(lambda found: values[found[1] or found[2] or found[3]], expr)


def duration(seconds: float) -> str:
    """A time as PromQL has it."""
    return f"{round(1000 * seconds)}ms"


def all_queries(rows: tuple[Row, ...]) -> Iterator[tuple[Row, Panel, Query]]:
    """Give every query with its panel and row, in the dashboard's order."""
    for row in rows:
        for panel in row.panels:
            for query in panel.queries:
                yield row, panel, query


def _read(text: str) -> tuple[str, tuple[Row, ...]]:
    """Title and rows; abbreviations are written out in the order of the table that defines them."""
    definition: dict[str, Any] = tomlkit.parse(text).unwrap()
    for row in definition["rows"]:
        for query in (query for panel in row["panels"] for query in panel["queries"]):
            for short, long in definition["short"].items():
                query["expr"] = query["expr"].replace(short, long)
    return definition["title"], TypeAdapter(tuple[Row, ...]).validate_python(definition["rows"])


TITLE, ROWS = _read(Path(__file__).with_name("panels.toml").read_text(encoding="utf-8"))
