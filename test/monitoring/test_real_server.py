"""The dashboard's queries, the rules and `/metrics` on real servers in both modes under traffic."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterator

import httpx
import pytest
from click.testing import CliRunner
from prometheus_client.parser import text_string_to_metric_families

from monitored import ROOT, ask, wait_until
from otlp import attributes
from real_run import MODES, Run, Traffic, real_run, traffic
from sglang_layered.metrics.table import METRICS, PREFIX
from sglang_layered_lab.dashboard import cli

pytestmark = pytest.mark.server

NUM_SCRAPERS = 20
NUM_SCRAPES = 8
GROWING = ("_total", "_bucket", "_count", "_sum")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    with real_run(tmp_path_factory.mktemp("real")) as started:
        yield started


@pytest.fixture(scope="module")
def streams(run: Run) -> Iterator[list[Traffic]]:
    """Traffic on both servers while this module's tests run."""
    with traffic(run) as started:
        wait_until("answers from both", lambda: all(stream.num_finished >= 10 for stream in started))
        yield started


def check(run: Run, *args: str):
    command = ["check", "--prometheus", run.prometheus, "--minutes", "5", *args]
    return CliRunner().invoke(cli.dashboard, command)


def test_every_query_and_rule_has_data_under_traffic(run: Run, streams: list[Traffic]) -> None:
    wait_until("data for all", lambda: check(run).exit_code == 0, show=lambda: check(run).output)


def test_the_chunked_server_has_all_but_the_layered_metrics(run: Run, streams: list[Traffic]) -> None:
    def chunked():
        return check(run, "--mode", "chunked", "--optional", "layered", "--optional", "router")

    wait_until("data in chunked mode", lambda: chunked().exit_code == 0, show=lambda: chunked().output)


def test_each_server_is_recorded_in_its_mode(run: Run, streams: list[Traffic]) -> None:
    def modes() -> dict[str, str]:
        found = ask(run.prometheus, "query", query="instance:sglang_prefill_mode:info")["data"]["result"]
        return {series["metric"]["instance"]: series["metric"]["mode"] for series in found}

    # On a busy machine a scrape may take longer than its second, and its server is down until the next one.
    expected = {run.servers[mode].removeprefix("http://"): mode for mode in MODES}
    wait_until("both modes", lambda: modes() == expected, show=lambda: str(modes()))


def test_no_alert_of_a_broken_server_is_due(run: Run, streams: list[Traffic]) -> None:
    def due() -> set[str]:
        return {alert["labels"]["alertname"] for alert in ask(run.prometheus, "alerts")["data"]["alerts"]}

    slow_machine = {"SglangSloBurnFast", "SglangSloBurnSlow"}
    wait_until("no other alert", lambda: due() <= slow_machine, show=lambda: str(due()))


def test_twenty_scrapers_get_whole_answers_and_counters_never_fall(run: Run, streams: list[Traffic]) -> None:
    before = [stream.num_finished for stream in streams]
    for url in run.servers.values():
        finals = asyncio.run(scrape_together(url))
        assert len(finals) == NUM_SCRAPERS
        assert all(PREFIX + "num_running_reqs" in {name for name, _ in final} for final in finals)
    wait_until(
        "traffic went on",
        lambda: all(now.num_finished > then for now, then in zip(streams, before, strict=True)),
    )


def test_every_metric_of_the_table_is_served(run: Run, streams: list[Traffic]) -> None:
    for mode, url in run.servers.items():
        served = {name for name, _ in asyncio.run(scrape_together(url, 1, 1))[0]}
        wanted = {
            metric
            for metric in METRICS
            if mode == "layered" or metric.needs not in ("layered", "learns", "paces")
        }
        suffix = {"histogram": "_count"}
        missing = {PREFIX + m.name + suffix.get(m.kind, "") for m in wanted} - served
        assert not missing, mode


def test_the_containers_smoke_finds_layered_steps_and_tells_a_chunked_server(
    run: Run, streams: list[Traffic]
) -> None:
    def smoke(*addresses: str) -> subprocess.CompletedProcess[str]:
        command = ["sh", str(ROOT / "docker" / "smoke.sh"), *addresses]
        env = {**os.environ, "WAIT_S": "30", "no_proxy": "*"}
        return subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)

    good = smoke(run.servers["layered"], run.prometheus)
    assert (good.returncode, good.stdout) == (0, "smoke: tokens, layered steps, scraped\n"), good.stderr
    bad = smoke(run.servers["chunked"])
    assert (bad.returncode, bad.stderr) == (1, "smoke: the server is not in layered mode\n")


def test_spans_of_layered_steps_tile_the_layers(run: Run, streams: list[Traffic]) -> None:
    def cohorts() -> list[list[dict[str, int]]]:
        """Spans of one request's run through the groups: its trace, in order, up to the last group."""
        by_trace: dict[bytes, list[dict[str, int]]] = {}
        for span in sorted(run.traces.named("layer_group"), key=lambda span: span.start_time_unix_nano):
            by_trace.setdefault(span.trace_id, []).append(attributes(span))
        return [spans for spans in by_trace.values() if len(spans) == spans[-1]["group.count"] > 1]

    wait_until("a request in several groups", lambda: len(cohorts()) >= 3)
    for spans in cohorts():
        assert [span["group.index"] for span in spans] == list(range(len(spans)))
        ends = [0, *(span["layers.end"] for span in spans)]
        assert [span["layers.start"] for span in spans] == ends[:-1]
        assert ends[-1] == 8
    assert {"prefill_forward", "decode_loop"} <= {span.name for span in run.traces.spans}


def test_traffic_met_no_error(streams: list[Traffic]) -> None:
    assert [stream.problems for stream in streams] == [[] for _ in streams]


Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


async def scrape_together(url: str, clients: int = NUM_SCRAPERS, times: int = NUM_SCRAPES) -> list[Samples]:
    """The last samples of each client, whose answers are checked as one sequence.

    After all have come: parsing in between may take so long that the server closes an idle connection.
    """
    return [
        last_checked(texts) for texts in await asyncio.gather(*(scrape(url, times) for _ in range(clients)))
    ]


async def scrape(url: str, times: int) -> list[str]:
    async with httpx.AsyncClient(timeout=120, trust_env=False, follow_redirects=True) as client:
        replies = [await client.get(f"{url}/metrics", headers={"Accept": "text/plain"}) for _ in range(times)]
    return [reply.raise_for_status().text for reply in replies]


def last_checked(texts: list[str]) -> Samples:
    last: Samples = {}
    for text in texts:
        now = samples(text)
        fallen = {key: (last[key], now.get(key)) for key in last if now.get(key, -1.0) < last[key]}
        assert not {key: values for key, values in fallen.items() if key[0].endswith(GROWING)}
        last = now
    return last


def samples(text: str) -> Samples:
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in found, f"twice in one answer: {key}"
            found[key] = sample.value
    assert found
    return found
