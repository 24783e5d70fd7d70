"""`dashboard check` and `dashboard render` on a real Prometheus that scrapes made-up servers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from matplotlib import image

from monitored import ask, wait_until
from sglang_layered.errors import LayeredPrefillError
from sglang_layered_lab.dashboard import cli
from sglang_layered_lab.dashboard.axes import legend_of
from sglang_layered_lab.dashboard.prometheus import rate_interval_s
from sglang_layered_lab.dashboard.units import Scale, scale_for


def run(*args: str):
    return CliRunner().invoke(cli.dashboard, args)


def test_every_query_and_rule_has_data(monitored: str) -> None:
    got = run("check", "--prometheus", monitored, "--minutes", "5")
    assert got.exit_code == 0, got.output
    assert "0 fail" in got.output and "no data" not in got.output


def test_scraped_names_keep_their_colon(monitored: str) -> None:
    """Prometheus 2 asks for OpenMetrics, where prometheus_client writes `_`; the configuration undoes it."""
    names = ask(monitored, "label/__name__/values")["data"]
    assert [name for name in names if name.startswith("sglang_")] == []
    assert sum(name.startswith("sglang:") for name in names) > 30


def test_half_of_the_requests_miss_and_no_other_alert_is_due(monitored: str) -> None:
    def due() -> dict[str, dict]:
        return {alert["labels"]["alertname"]: alert for alert in ask(monitored, "alerts")["data"]["alerts"]}

    # On a slow machine others are pending until there is a second scrape; they must not stay.
    wait_until("the slow burn and nothing else", lambda: due().keys() == {"SglangSloBurnSlow"}, show=due)
    alert = due()["SglangSloBurnSlow"]
    limit = alert["labels"]["slo"]
    assert alert["annotations"]["summary"] == f"demo misses its {limit} limit, slow burn"
    assert "times as often as the objective allows" in alert["annotations"]["description"]


def test_a_choice_without_series_fails_and_says_which(monitored: str) -> None:
    got = run("check", "--prometheus", monitored, "--minutes", "5", "--mode", "nobody")
    assert got.exit_code == 1
    assert "FAIL  Latency / Time to first token, quantiles: no data" in got.output


def test_what_is_optional_does_not_fail(nothing_scraped: str, monitored: str) -> None:
    modes = ("check", "--prometheus", monitored, "--minutes", "5", "--mode", "chunked")
    assert "FAIL  Layers / Step time, by kind" in run(*modes).output
    got = run(*modes, "--optional", "layered")
    assert got.exit_code == 0, got.output
    assert "skip  Layers / Step time, by kind" in got.output
    empty = run("check", "--prometheus", nothing_scraped)
    assert isinstance(empty.exception, LayeredPrefillError) and "scrapes no target" in str(empty.exception)


def test_no_prometheus_is_one_clear_error() -> None:
    got = run("check", "--prometheus", "http://127.0.0.1:9")
    assert isinstance(got.exception, LayeredPrefillError)
    assert str(got.exception).startswith("--prometheus http://127.0.0.1:9: ")


def test_the_picture_has_all_panels_and_says_where_data_is_missing(monitored: str, tmp_path: Path) -> None:
    full, part = tmp_path / "full.png", tmp_path / "part.png"
    got = run("render", "--prometheus", monitored, "--minutes", "1", "--out", str(full))
    assert got.exit_code == 0, got.output
    assert "no data" not in got.output
    got = run("render", "--prometheus", monitored, "--minutes", "1", "--mode", "nobody", "--out", str(part))
    assert got.exit_code == 0, got.output
    assert "no data for:" in got.output and "Step time, by kind" in got.output
    pictures = [image.imread(path)[..., :3] for path in (full, part)]
    assert pictures[0].shape[0] > pictures[1].shape[0], "rows without data are drawn small"
    assert float(np.mean(np.any(pictures[1] < 0.9, axis=-1))) > 0.005


@pytest.mark.parametrize(
    ("unit", "largest", "wanted"),
    [
        ("s", 2.0, Scale(1.0, "s")),
        ("s", 0.02, Scale(1e-3, "ms")),
        ("s", 0.0, Scale(1.0, "s")),
        ("bytes", 3 * 2**30, Scale(2**30, "GiB")),
        ("Bps", 5.0, Scale(1, "B / s")),
        ("percentunit", 0.4, Scale(0.01, "%")),
        ("joule", 0.3, Scale(1e-3, "mJ")),
        ("watt", 0.3, Scale(1.0, "W")),
    ],
)
def test_an_axis_has_the_prefix_that_fits(unit, largest, wanted) -> None:
    assert scale_for(unit, largest) == wanted


def test_a_legend_leaves_out_labels_that_a_series_lacks() -> None:
    assert legend_of("{{mode}} {{ device }} idle", {"device": "gpu0"}) == "gpu0 idle"


def test_a_rate_spans_four_scrapes_or_a_step() -> None:
    assert rate_interval_s(5, 1) == 20
    assert rate_interval_s(5, 60) == 65
