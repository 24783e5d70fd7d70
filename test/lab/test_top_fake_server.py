"""A server's metrics page for the tests of `top`: SGLang's names and labels, and ours from the table."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from sglang_layered.metrics.table import METRICS, PREFIX, Needs
from sglang_layered_lab.watch.sample import Sample, parse

EVERYTHING: tuple[Needs, ...] = ("any", "layered", "experts", "energy", "slo")
RANK = {"model_name": "tiny", "engine_type": "unified", "tp_rank": "0", "pp_rank": "0", "moe_ep_rank": "0"}
TOKENIZER = {"model_name": "tiny", "engine_type": "unified"}
TTFT_BUCKETS = (0.1, 0.2, 0.4, 1.0, 8.0)
TBT_BUCKETS = (0.002, 0.01, 0.02, 0.04, 1.0)


class FakeServer:
    """Metrics by name without prefix; `ranks` are the labels that each scheduler rank adds to RANK."""

    def __init__(
        self, needs: tuple[Needs, ...] = EVERYTHING, ranks: tuple[dict[str, str], ...] = ({},)
    ) -> None:
        self.ranks = [{**RANK, **rank} for rank in ranks]
        self.registry = CollectorRegistry()
        self.metrics: dict[str, Any] = {}
        names = list(self.ranks[0])
        for metric in METRICS:
            if metric.needs in needs:
                self._add(metric.kind, metric.name, [*names, *metric.labels], metric.buckets)
        self._add("gauge", "num_running_reqs", names)
        self._add("gauge", "num_queue_reqs", names)
        self._add("counter", "realtime_tokens_total", [*names, "mode"])
        for name in ("prompt_tokens_total", "generation_tokens_total"):
            self._add("counter", name, [*TOKENIZER, "is_streaming"])
        self._add("histogram", "time_to_first_token_seconds", [*TOKENIZER, "is_streaming"], TTFT_BUCKETS)
        self._add("histogram", "inter_token_latency_seconds", list(TOKENIZER), TBT_BUCKETS)

    def _add(self, kind: str, name: str, labels: list[str], buckets: tuple[float, ...] = ()) -> None:
        made: dict[str, Any] = {"counter": Counter, "gauge": Gauge, "histogram": Histogram}
        extra = {"buckets": buckets} if kind == "histogram" else {}
        self.metrics[name] = made[kind](PREFIX + name, name, labels, registry=self.registry, **extra)

    def of(self, name: str, rank: int = 0, **labels: str) -> Any:
        """One series of a scheduler's metric."""
        return self.metrics[name].labels(**self.ranks[rank], **labels)

    def seen(self, name: str, *values: float, **labels: str) -> None:
        """Observations of a tokenizer's histogram."""
        for value in values:
            self.metrics[name].labels(**TOKENIZER, **labels).observe(value)

    def text(self) -> str:
        return generate_latest(self.registry).decode()

    def sample(self, time_s: float) -> Sample:
        return parse(self.text(), time_s)


def idle_server(**options: Any) -> FakeServer:
    """A server of every feature that has done nothing yet."""
    server = FakeServer(**options)
    for rank, _ in enumerate(server.ranks):
        server.of("prefill_mode_info", rank, mode="layered", policy="tokens", execution="fused").set(1)
        server.of("layered_prefill_active", rank).set(1)
        server.of("num_running_reqs", rank).set(0)
        server.of("num_queue_reqs", rank).set(0)
    return server


def work(server: FakeServer) -> None:
    """What a server did in 2 s; test_top_view.py has the numbers that follow."""
    for kind, number, step_s in (("decode", 6, 0.004), ("layered", 4, 0.025)):
        server.of("layered_steps_total", kind=kind).inc(number)
        for _ in range(number):
            server.of("layered_step_seconds", kind=kind).observe(step_s)
    server.of("num_running_reqs").set(5)
    server.of("num_queue_reqs").set(2)
    server.of("realtime_tokens_total", mode="prefill_compute").inc(1000)
    server.of("realtime_tokens_total", mode="prefill_cache").inc(500)
    server.of("realtime_tokens_total", mode="decode").inc(38)
    server.seen("time_to_first_token_seconds", 0.3, 0.3, is_streaming="true")
    server.seen("inter_token_latency_seconds", *[0.015] * 30, *[0.03] * 8)
    server.of("layered_cohorts_in_flight").set(1)
    server.of("layered_cohort_groups", state="done").set(3)
    server.of("layered_cohort_groups", state="left").set(5)
    server.of("layered_parked_bytes").set(4_200_000)
    server.of("layered_kv_slots", state="filled").set(900)
    server.of("layered_kv_slots", state="partial").set(300)
    server.of("layered_dropped_cohorts_total", reason="abort").inc(2)
    server.of("layered_strategy_info", strategy="fused").set(1)
    server.of("expert_load_bytes_total", phase="hybrid").inc(3e9)
    server.of("expert_coverage_ratio", phase="hybrid").observe(0.75)
    server.of("expert_tokens_per_active_expert", phase="hybrid").observe(12.5)
    server.of("energy_joules_total", device="gpu0", source="nvml-energy").inc(600)
    server.of("energy_joules_total", device="package-0", source="rapl").inc(100)
    server.of("energy_idle_watts", device="gpu0", source="nvml-energy").set(70)
    server.of("tokens_for_energy_total", kind="prompt").inc(1000)
    server.of("tokens_for_energy_total", kind="output").inc(40)
    server.of("slo_limit_seconds", slo="ttft").set(0.5)
    server.of("slo_requests_total", slo="ttft", met="true").inc(3)
    server.of("slo_requests_total", slo="ttft", met="false").inc(1)


@pytest.mark.parametrize("needs", [EVERYTHING, ("any",)])
def test_page_has_the_metrics_of_the_table_that_its_flags_give(needs: tuple[Needs, ...]) -> None:
    server = FakeServer(needs)
    for metric in METRICS:
        labels = {name: "x" for name in metric.labels}
        if metric.needs in needs:
            server.of(metric.name, **labels)
    found = set(server.sample(0.0).series)
    for metric in METRICS:
        name = f"{metric.name}_bucket" if metric.kind == "histogram" else metric.name
        assert (name in found) == (metric.needs in needs)
