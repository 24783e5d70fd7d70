"""`dashboard check` on a real Prometheus that scrapes made-up servers."""

from __future__ import annotations

from click.testing import CliRunner

from monitored import ask, wait_until
from sglang_layered.errors import LayeredPrefillError
from sglang_layered_lab.dashboard import cli
from sglang_layered_lab.dashboard.prometheus import rate_interval_s


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


def test_a_rate_spans_four_scrapes_or_a_step() -> None:
    assert rate_interval_s(5, 1) == 20
    assert rate_interval_s(5, 60) == 65
