"""Writes the dashboard as Grafana JSON, through Grafana's own builders (schema of Grafana 11.6)."""

import json
from itertools import count

from grafana_foundation_sdk.builders import common, dashboard, heatmap, prometheus, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    LegendDisplayMode,
    LegendPlacement,
    LineInterpolation,
    StackingMode,
    TooltipDisplayMode,
    VisibilityMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DataSourceRef,
    DynamicConfigValue,
    VariableOption,
    VariableRefresh,
    VariableSort,
)
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from sglang_layered_lab.dashboard.definition import Panel, Query, Row

UID = "sglang-layered"
SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
GRID_COLUMNS = 24
PANEL_HEIGHT = 8
VARIABLES = {
    "instance": ("Server", "instance"),
    "model": ("Model", "model_name"),
    "mode": ("Prefill mode", "mode"),
}


def dashboard_json(title: str, rows: tuple[Row, ...]) -> str:
    """Return the dashboard as Grafana imports and provisions it."""
    board = (
        dashboard.Dashboard(title)
        .uid(UID)
        .tags(["sglang", "layered-prefill"])
        .description("Layered and chunked prefill side by side; made by `sglang-layered dashboard write`.")
        .time("now-30m", "now")
        .refresh("10s")
        .timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
    )
    for name, (label, source) in VARIABLES.items():
        board.with_variable(_variable(name, label, source))
    numbers = count(1)
    for row in rows:
        board.with_row(dashboard.Row(row.title).id(next(numbers)))
        for panel in row.panels:
            board.with_panel(_panel(panel, next(numbers), GRID_COLUMNS // row.columns))
    return json.dumps(board.build(), cls=JSONEncoder, indent=2, sort_keys=True) + "\n"


def _variable(name: str, label: str, source: str) -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .datasource(SOURCE)
        .query({"query": f"label_values(sglang:prefill_mode_info, {source})", "refId": name})
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(VariableOption(selected=True, text=["All"], value=["$__all"]))
    )


def _panel(panel: Panel, number: int, width: int) -> heatmap.Panel | timeseries.Panel:
    built = _heatmap(panel) if panel.kind == "heatmap" else _lines(panel)
    built.id(number).span(width).height(PANEL_HEIGHT).title(panel.title).datasource(SOURCE)
    built.description(panel.description)
    for index, query in enumerate(panel.queries):
        built.with_target(_target(query, chr(ord("A") + index), panel.kind))
    return built


def _target(query: Query, ref: str, kind: str) -> prometheus.Dataquery:
    form = PromQueryFormat.HEATMAP if kind == "heatmap" else PromQueryFormat.TIME_SERIES
    target = prometheus.Dataquery().datasource(SOURCE).ref_id(ref).expr(query.expr).range()
    return target.legend_format(query.legend).format(form)


def _lines(panel: Panel) -> timeseries.Panel:
    legend = common.VizLegendOptions().show_legend(True).display_mode(LegendDisplayMode.LIST)
    built = (
        timeseries.Panel()
        .unit(panel.unit)
        .min(0)
        .show_points(VisibilityMode.NEVER)
        .line_width(2)
        .legend(legend.placement(LegendPlacement.BOTTOM))
        .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI))
    )
    if panel.kind in ("steps", "stacked"):
        built.line_interpolation(LineInterpolation.STEP_AFTER)
    if panel.kind == "stacked":
        built.fill_opacity(40).stacking(common.StackingConfig().mode(StackingMode.NORMAL))
    dash = DynamicConfigValue("custom.lineStyle", {"fill": "dash", "dash": [8, 6]})
    for index, query in enumerate(panel.queries):
        if query.dashed:
            built.override_by_query(chr(ord("A") + index), [dash])
    return built


def _heatmap(panel: Panel) -> heatmap.Panel:
    colours = heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Blues").steps(64)
    return (
        heatmap.Panel()
        .calculate(False)
        .color(colours)
        .y_axis(heatmap.YAxisConfig().unit(panel.unit))
        .cell_values(heatmap.CellValues().unit("ops"))
        .filter_values(heatmap.FilterValueRange().le(1e-9))
        .cell_gap(0)
    )
