"""`monitoring snapshot` on a real Prometheus: every panel of the JSON in its place, with what it says.

Screenshots go to `out/pages/`, to be looked at.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import DESKTOP, PHONE, chromium, grave_findings, opened, runs_over
from click.testing import CliRunner, Result

from monitored import ROOT, ask, wait_until
from sglang_layered.errors import LabError, LayeredPrefillError
from sglang_layered_lab.cli.monitoring import monitoring
from sglang_layered_lab.dashboard.board import read_board
from sglang_layered_lab.dashboard.cli import JSON_PATH
from sglang_layered_lab.dashboard.definition import ROWS, Choice, filled
from sglang_layered_lab.dashboard.drawing import PALETTE, Line, buckets, draw_lines
from sglang_layered_lab.dashboard.prometheus import Prometheus, Window, seconds
from sglang_layered_lab.dashboard.snapshot import values_of, window_of

SHOTS = ROOT / "out" / "pages"
LOOKS: dict[str, dict[str, Any]] = {
    "desktop": {"viewport": DESKTOP},
    "dark": {"viewport": DESKTOP, "color_scheme": "dark"},
    "phone": {"viewport": PHONE, "has_touch": True},
}
A4_LANDSCAPE = 1047  # CSS pixels of a sheet within the page's margins
LEFTS = "[...new Set([...document.querySelectorAll('.panel')].map(each => each.getBoundingClientRect().x))]"
# Letters and lines of pictures are thousands of elements, of which axe has nothing to say but after seconds.
WITHOUT_OUTLINES = "document.querySelectorAll('.picture').forEach(each => each.replaceChildren())"
JSON = (ROOT / JSON_PATH).read_text(encoding="utf-8")
PANELS = [panel for panel in json.loads(JSON)["panels"] if panel["type"] != "row"]


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(monitoring, ["snapshot", *map(str, args)])


@pytest.fixture(scope="module")
def page(monitored: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("snapshot") / "dashboard.html"

    def is_whole() -> bool:
        got = run("--prometheus", monitored, "--range", "20s", "--out", out)
        assert got.exit_code == 0 and got.output == f"wrote {out}\n", got.output
        return not re.search("No data|no value", out.read_text(encoding="utf-8"))

    wait_until("data in every panel, up to its end", is_whole)  # a busy machine misses scrapes
    return out


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as running:
        yield running


def test_the_board_that_is_drawn_is_the_dashboards_definition() -> None:
    rows = read_board(JSON).rows
    assert [(row.title, tuple(each.panel for each in row.panels)) for row in rows] == [
        (row.title, row.panels) for row in ROWS
    ]


def test_every_panel_has_data_and_says_what_the_json_says(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    articles = re.findall(r"<article.*?</article>", text, re.DOTALL)
    assert len(articles) == len(PANELS) and "No data" not in text
    for panel, article in zip(PANELS, articles, strict=True):
        said = unescape(article)
        place = panel["gridPos"]
        assert f"--first: {place['x'] + 1}; --width: {place['w']}" in said
        assert panel["title"] in said and panel["description"] in said and 'class="picture"' in said
        assert len(re.findall("<pre>", said)) == len(panel["targets"]) and "$" not in said
        if panel["type"] == "timeseries":
            fixed = [re.split(r"\{\{\w+\}\}", target["legendFormat"]) for target in panel["targets"]]
            for parts in fixed:
                assert re.search(r"\w+".join(map(re.escape, parts)).replace(r"\w+", r"[\w.:/-]+"), said), (
                    parts
                )


def test_a_name_has_beside_it_what_prometheus_says(page: Path, monitored: str) -> None:
    """The limits of the made-up servers never change: 0.5 s."""
    [article] = re.findall(
        r"<article[^>]*>\s*<h3[^>]*>Limits in force.*?</article>", page.read_text(), re.DOTALL
    )
    names = re.findall(r"</svg>(.*?) <span>(.*?)</span>", article)
    expr = "sglang:slo_limit_seconds * on (instance) group_left (mode) instance:sglang_prefill_mode:info"
    labels = [each["metric"] for each in ask(monitored, "query", query=expr)["data"]["result"]]
    assert sorted(names) == sorted((f"{each['mode']} {each['slo']}", "500 ms") for each in labels)
    assert len(names) == 4


def test_a_choice_without_series_is_said_with_the_query(monitored: str, tmp_path: Path) -> None:
    secret = monitored.replace("//", "//somebody:secret@")
    assert run("--prometheus", secret, "--range", "2m", "--mode", "chunked", "--out", tmp_path).exit_code == 0
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    missing = [each for each in re.findall(r"<article.*?</article>", text, re.DOTALL) if "No data" in each]
    assert 5 < len(missing) < len(PANELS) / 2
    assert all("<details open>" in each and "chunked" in each for each in missing)
    assert "These series need --prefill-mode layered." in missing[0]
    assert "chosen by chunked" in text and monitored in text and "secret" not in text


def test_a_query_that_prometheus_refuses_names_panel_and_query(monitored: str, tmp_path: Path) -> None:
    got = run("--prometheus", monitored, "--mode", "(", "--out", tmp_path / "page.html")
    assert isinstance(got.exception, LabError)
    assert str(got.exception).startswith("panel 'Time to first token, quantiles', query 1: --prometheus http")
    assert "missing closing )" in str(got.exception) and "histogram_quantile(0.5" in str(got.exception)
    assert not list(tmp_path.iterdir())


def test_no_prometheus_no_target_and_no_duration_are_clear_errors(
    nothing_scraped: str, tmp_path: Path
) -> None:
    out = ("--out", tmp_path / "page.html")
    absent, empty = (
        run("--prometheus", "http://127.0.0.1:9", *out),
        run("--prometheus", nothing_scraped, *out),
    )
    assert isinstance(absent.exception, LayeredPrefillError) and "127.0.0.1:9: " in str(absent.exception)
    assert isinstance(empty.exception, LayeredPrefillError) and "scrapes no target" in str(empty.exception)
    for span in ("15", "0m", "soon", "1.5h"):
        bad = run("--range", span, *out)
        assert bad.exit_code == 2 and "is no duration such as 15m or 1h30m" in bad.output
    assert not list(tmp_path.iterdir())


def test_a_panel_of_another_type_is_refused() -> None:
    with pytest.raises(LabError, match="panel 'Time to first token, quantiles' has the type gauge"):
        read_board(JSON.replace('"type": "timeseries"', '"type": "gauge"', 1))


def test_variables_have_what_grafana_would_take() -> None:
    window = window_of(range_s=1800, end_s=1_000_007, scrape_s=5)
    assert window == Window(998_200, 1_000_000, 10) and window.num_points == 181
    values = values_of(read_board(JSON), Choice(instance=r'10\.0\.0\.1:"'), window, scrape_s=5)
    asked = 'x[$__rate_interval] $__interval ${__range_s:raw} [[mode]] {i=~"$instance"}'
    assert filled(asked, values) == r'x[20000ms] 10000ms 1800 .* {i=~"10\\.0\\.0\\.1:\""}'
    assert window_of(range_s=60, end_s=100, scrape_s=15).step_s == 15  # never shorter than a scrape
    assert window_of(range_s=seconds("52w"), end_s=1e9, scrape_s=15).step_s % 86400 == 0


def test_points_that_a_series_lacks_are_gaps(monitored: str) -> None:
    with Prometheus(monitored) as prometheus:
        [series] = prometheus.series("vector(time() % 20) >= 10", Window(1000, 1040, 5))
    assert [math.isnan(value) for value in series.values] == [time % 20 < 10 for time in range(1000, 1041, 5)]


def test_a_bucket_has_what_is_not_in_those_below_it() -> None:
    heat = buckets({math.inf: [3.0, math.nan], 0.5: [1.0, 0.5], 1.0: [3.0, 0.5]})
    assert heat.bounds == (0.5, 1.0, math.inf)
    assert heat.cells.tolist() == [[1.0, 0.5], [2.0, 0.0], [0.0, 0.0]] and heat.top == 2.0


def test_a_stack_has_gaps_where_its_series_has_none() -> None:
    lower, upper = np.array([math.nan, 1.0, 1.0]), np.array([2.0, math.nan, 3.0])
    lines = [Line(name, PALETTE[0], False, values) for name, values in (("a", lower), ("b", upper))]
    figure = draw_lines(lines, np.array([0.0, 1.0, 2.0]), "short", "stacked", 8)
    drawn = [list(line.get_ydata()) for line in figure.axes[0].lines[::2]]  # the others are points alone
    assert drawn == [
        pytest.approx([math.nan, 1, 1], nan_ok=True),
        pytest.approx([2, math.nan, 4], nan_ok=True),
    ]


@pytest.mark.parametrize("look", LOOKS)
def test_it_can_be_read(look: str, page: Path, browser: Any) -> None:
    with opened(browser, page, **LOOKS[look]) as shown:
        SHOTS.mkdir(parents=True, exist_ok=True)
        shown.screenshot(path=SHOTS / f"dashboard-{look}.png", full_page=True)
        assert runs_over(shown) <= 0
        lefts = shown.evaluate(LEFTS)
        assert len(lefts) == (1 if look == "phone" else 6)  # three, four and two panels a line
        if look != "desktop":  # its colours are those of the phone
            shown.evaluate(WITHOUT_OUTLINES)
            assert not grave_findings(shown)


def test_on_paper_nothing_is_cut_off(page: Path, browser: Any) -> None:
    with opened(browser, page, viewport={"width": A4_LANDSCAPE, "height": 720}, color_scheme="dark") as shown:
        shown.emulate_media(media="print")
        assert runs_over(shown) <= 0
        assert shown.evaluate("getComputedStyle(document.body).color") == "rgb(34, 34, 34)"
        pages = re.findall(rb"/Type\s*/Page\b", shown.pdf(prefer_css_page_size=True))
        assert 1 < len(pages) <= 8  # several panels a line, lines of several rows a sheet
