"""The definition of the dashboard, its JSON, and its queries on a Prometheus without data."""

from __future__ import annotations

import json
import re
from importlib.metadata import distribution
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from monitored import CONFIG, ROOT, ask
from sglang_layered.metrics.table import METRICS, PREFIX
from sglang_layered.patching import locate
from sglang_layered_lab.dashboard import cli
from sglang_layered_lab.dashboard.definition import (
    ROWS,
    Choice,
    Query,
    all_queries,
    base_name,
    metric_names,
    selectors,
    sources,
)

QUERIES = [query for _, _, query in all_queries(ROWS)]
RULES = [
    rule
    for name in ("recording.yml", "alerts.yml")
    for group in yaml.safe_load((CONFIG / name).read_text())["groups"]
    for rule in group["rules"]
]
EXPRESSIONS = [query.expr for query in QUERIES] + [rule["expr"] for rule in RULES]


def names_of_sglang() -> set[str]:
    collector = locate().package / "srt" / "observability" / "metrics_collector.py"
    return set(re.findall(r'name="(sglang:\w+)"', collector.read_text()))


def test_the_checked_in_json_is_the_generated_one(tmp_path: Path) -> None:
    got = CliRunner().invoke(cli.dashboard, ["write", "--out", str(tmp_path / "made.json")])
    assert got.exit_code == 0, got.output
    made = (tmp_path / "made.json").read_text()
    assert (ROOT / cli.JSON_PATH).read_text() == made, "run `sglang-layered dashboard write`"


def test_the_json_has_every_panel_and_query_once() -> None:
    board = json.loads((ROOT / cli.JSON_PATH).read_text())
    panels = [panel for panel in board["panels"] if panel["type"] != "row"]
    assert [panel["title"] for panel in panels] == [panel.title for row in ROWS for panel in row.panels]
    assert [target["expr"] for panel in panels for target in panel["targets"]] == [
        query.expr for query in QUERIES
    ]
    places = [tuple(panel["gridPos"].values()) for panel in board["panels"]]
    assert len(set(places)) == len({panel["id"] for panel in board["panels"]}) == len(places)
    variables = [variable["name"] for variable in board["templating"]["list"]]
    assert variables == ["datasource", "instance", "model", "mode"]


def test_provisioning_names_what_the_dashboard_and_prometheus_use() -> None:
    grafana = ROOT / "docker" / "monitoring" / "grafana"
    source = yaml.safe_load((grafana / "provisioning/datasources/prometheus.yaml").read_text())[
        "datasources"
    ][0]
    scraping = yaml.safe_load((CONFIG / "prometheus.yml").read_text())["global"]
    assert source["jsonData"]["timeInterval"] == scraping["scrape_interval"]
    provider = yaml.safe_load((grafana / "provisioning/dashboards/layered.yaml").read_text())["providers"][0]
    assert provider["options"]["path"] == "/var/lib/grafana/dashboards"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.title)
def test_a_row_fills_the_grid_and_every_panel_explains_itself(row) -> None:
    assert 24 % row.columns == 0
    for panel in row.panels:
        assert panel.description.endswith("."), panel.title
        assert len({query.legend for query in panel.queries}) == len(panel.queries), panel.title
        assert panel.kind != "heatmap" or [query.legend for query in panel.queries] == ["{{le}}"]


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: query.legend)
def test_a_legend_tells_every_two_lines_of_a_query_apart(query: Query) -> None:
    """A server that changed its mode has lines of both: without the mode in it, one legend stands twice."""
    grouped = re.search(r"\bby \(([^)]*)\)", query.expr)
    labels = set() if grouped is None else {label.strip() for label in grouped[1].split(",")} - {"le"}
    assert labels <= set(re.findall(r"\{\{(\w+)\}\}", query.legend)), query.expr


@pytest.mark.parametrize("expr", EXPRESSIONS)
def test_every_name_is_declared_somewhere(expr: str) -> None:
    names = metric_names(expr)
    known = {PREFIX + metric.name for metric in METRICS} | names_of_sglang()
    known |= {rule["record"] for rule in RULES if "record" in rule} | {"up"}
    unknown = {name for name in names if base_name(name) not in known and not name.startswith("smg_")}
    assert not unknown
    assert names or expr == "vector(0.95)"


def test_router_names_are_the_installed_routers() -> None:
    library = next(
        path for path in distribution("sglang-router").files or () if path.name.endswith(".so")
    ).locate()
    text = Path(library).read_bytes()
    names = {name for expr in EXPRESSIONS for name in metric_names(expr) if name.startswith("smg_")}
    assert len(names) == 6
    assert [name for name in names if base_name(name).encode() not in text] == []


def test_labels_of_our_metrics_exist() -> None:
    """A matcher on a label that a metric lacks selects nothing."""
    everywhere = {"instance", "model_name", "pp_rank"}
    declared = {PREFIX + metric.name: everywhere | set(metric.labels) | {"le"} for metric in METRICS}
    seen = 0
    for selector in {found for expr in EXPRESSIONS for found in selectors(expr)}:
        name, _, matchers = selector.partition("{")
        if base_name(name) in declared:
            seen += 1
            assert set(re.findall(r"(\w+)\s*=", matchers)) <= declared[base_name(name)], selector
    assert seen > 20


def test_every_query_parses(nothing_scraped: str) -> None:
    for expr in [Choice().filled(query.expr, 4) for query in QUERIES]:
        answer = ask(nothing_scraped, "query", query=expr)
        assert answer["status"] == "success", (expr, answer)
    assert ask(nothing_scraped, "query", query="sum by (")["errorType"] == "bad_data"


def test_choices_reach_every_query_of_a_server() -> None:
    choice = Choice(instance="a:1", model="m", mode="layered")
    for query in QUERIES:
        filled = choice.filled(query.expr, 20)
        assert "$" not in filled
        if sources(query.expr) != {"router"} and "slo:" not in query.expr:
            assert 'instance=~"a:1"' in filled and 'model_name=~"m"' in filled
            assert 'mode=~"layered"' in filled or "prefill_mode_info{" in filled or "_active" in filled
    assert "[20000ms]" in choice.filled(QUERIES[0].expr, 20)


def test_names_and_needs_of_an_expression() -> None:
    expr = 'rate(sglang:energy_joules_total{x="sglang:no"}[1m]) * smg_worker_health'
    assert metric_names(expr) == {"sglang:energy_joules_total", "smg_worker_health"}
    assert sources(expr) == {"energy", "router"}
    assert sources("sglang:token_usage") == {"any"}
    assert selectors('a:b{c="d"} > a:b{c="d"} + smg_e') == ['a:b{c="d"}', "smg_e"]
