"""Exporters of made-up servers, with every metric that the dashboard reads, and of a made-up router."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from sglang_layered.metrics.table import METRICS, PREFIX, Metric
from sglang_layered_lab.serving import HOST, free_port

TICK_S = 0.2
SCHEDULER = {
    "model_name": "demo",
    "engine_type": "unified",
    "tp_rank": "0",
    "pp_rank": "0",
    "moe_ep_rank": "0",
}
TOKENIZER = {"model_name": "demo", "engine_type": "unified"}
LATENCY_S = (0.002, 0.004, 0.008, 0.015, 0.03, 0.06, 0.1, 0.2, 0.4, 0.8, 1.0, 2.0, 4.0, 8.0, 20.0)
VALUES: Mapping[str, tuple[str, ...]] = {
    "kind": ("prefill", "decode", "layered"),
    "phase": ("prompt", "decode", "hybrid"),
    "reason": ("aborted", "KV pool full"),
    "slo": ("ttft", "tbt", "both"),
    "met": ("true", "false"),
    "device": ("gpu0", "gpu1"),
    "source": ("nvml-energy",),
    "policy": ("token-target",),
    "execution": ("fused",),
    "strategy": ("fused", "sequential"),
}
STATES = {"layered_cohort_groups": ("done", "left"), "layered_kv_slots": ("filled", "partial")}
KINDS = {"tokens_for_energy_total": ("prompt", "output")}
LIMITS = ("ttft", "tbt")
# Typical sizes: of an observation, of a counter's growth a second, of a gauge.
SIZES = {
    "layered_step_seconds": 0.012,
    "layered_groups_per_cohort": 6,
    "layered_cohort_tokens": 2500,
    "layered_step_budget_seconds": 0.03,
    "layered_steps_over_budget_total": 0.1,
    "layered_step_prediction_error_ratio": 0.05,
    "expert_coverage_ratio": 0.6,
    "expert_tokens_per_active_expert": 9,
    "expert_load_bytes_total": 4e9,
    "energy_joules_total": 300,
    "tokens_for_energy_total": 900,
    "layered_steps_total": 40,
    "layered_dropped_cohorts_total": 0.05,
    "layered_left_requests_total": 0.05,
    "layered_overtaken_cohorts_total": 0.5,
    "layered_mode_changes_total": 0.0,
    "slo_requests_total": 3,
    "energy_idle_watts": 75,
    "layered_parked_bytes": 40e6,
    "layered_kv_slots": 9000,
    "layered_cohort_groups": 5,
    "layered_cohorts_in_flight": 1,
    "slo_limit_seconds": 0.5,
}


class MadeUpServer:
    """Series of one server in one prefill mode; `tick` lets time pass for them."""

    def __init__(self, mode: str, seed: int) -> None:
        self.mode, self.rng = mode, random.Random(seed)
        self.registry = CollectorRegistry()
        self.ours = [
            self._declared(metric)
            for metric in METRICS
            if mode == "layered" or metric.needs not in ("layered", "learns", "paces")
        ]
        stream = {**TOKENIZER, "is_streaming": "true"}
        self.latencies = [
            (self._make(Histogram, "time_to_first_token_seconds", stream, buckets=LATENCY_S), 0.4),
            (self._make(Histogram, "inter_token_latency_seconds", TOKENIZER, buckets=LATENCY_S), 0.02),
            (self._make(Histogram, "e2e_request_latency_seconds", stream, buckets=LATENCY_S), 3.0),
        ]
        tokens = self._counter("realtime_tokens_total", "mode")
        self.tokens = [
            (tokens.labels(**SCHEDULER, mode=kind), a_second)
            for kind, a_second in (("prefill_compute", 900), ("prefill_cache", 300), ("decode", 600))
        ]
        names = (("token_usage", 0.4), ("num_running_reqs", 12), ("num_queue_reqs", 3))
        self.gauges = [(self._make(Gauge, name, SCHEDULER), typical) for name, typical in names]

    def tick(self) -> None:
        for metric, children in self.ours:
            for child in children:
                self._move(metric, child)
        for histogram, typical in self.latencies:
            for _ in range(5):
                histogram.observe(typical * self.rng.lognormvariate(0, 0.6))
        for counter, a_second in self.tokens:
            counter.inc(a_second * TICK_S * self.rng.uniform(0.5, 1.5))
        for gauge, typical in self.gauges:
            gauge.set(typical * self.rng.uniform(0.5, 1.5))

    def _move(self, metric: Metric, child) -> None:
        size = SIZES.get(metric.name)
        if metric.kind == "histogram":
            value = size * self.rng.lognormvariate(0, 0.4)
            child.observe(min(value, 1.0) if metric.name.endswith("ratio") else value)
        elif metric.kind == "counter":
            child.inc(size * TICK_S * self.rng.uniform(0.5, 1.5))
        elif metric.name in ("layered_prefill_active", "layered_strategy_info", "prefill_mode_info"):
            child.set(1)
        else:
            child.set(size if metric.needs in ("slo", "energy") else size * self.rng.uniform(0.3, 1.7))

    def _declared(self, metric: Metric) -> tuple[Metric, list]:
        """A metric of our table with a child for each combination of its labels' values."""
        kind = {"counter": Counter, "gauge": Gauge, "histogram": Histogram}[metric.kind]
        extra = {"buckets": metric.buckets} if metric.buckets else {}
        family = kind(
            PREFIX + metric.name, metric.help, [*SCHEDULER, *metric.labels], registry=self.registry, **extra
        )
        choices = [self._values(metric, label) for label in metric.labels]
        return metric, [
            family.labels(**SCHEDULER, **dict(zip(metric.labels, values, strict=True)))
            for values in itertools.product(*choices)
        ]

    def _values(self, metric: Metric, label: str) -> tuple[str, ...]:
        if label == "mode":
            return (self.mode,)
        if label == "state":
            return STATES[metric.name]
        if metric.name == "slo_limit_seconds":
            return LIMITS
        return KINDS.get(metric.name, VALUES[label]) if label == "kind" else VALUES[label]

    def _counter(self, name: str, *labels: str) -> Counter:
        return Counter(PREFIX + name, "Made up.", [*SCHEDULER, *labels], registry=self.registry)

    def _make(self, kind, name: str, labels: Mapping[str, str], **extra):
        return kind(PREFIX + name, "Made up.", list(labels), registry=self.registry, **extra).labels(**labels)


class MadeUpRouter:
    """The series of SGLang's router 0.3.2 that the dashboard reads, with the labels seen on a running one."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        requests = Counter("smg_router_requests_total", "Made up.", ["endpoint"], registry=registry)
        answers = Counter(
            "smg_http_responses_total", "Made up.", ["status_code", "error_code"], registry=registry
        )
        self.counters = [requests.labels("generate"), answers.labels("200", "")]
        self.seconds = Histogram("smg_router_request_duration_seconds", "Made up.", registry=registry)
        self.gauges = {}
        for name, value in (("requests_active", 4), ("health", 1), ("cb_state", 0)):
            gauge = Gauge(f"smg_worker_{name}", "Made up.", ["worker"], registry=registry)
            self.gauges |= {gauge.labels(f"http://replica-{index}:30000"): value for index in range(2)}

    def tick(self) -> None:
        for counter in self.counters:
            counter.inc(2)
        self.seconds.observe(0.3)
        for gauge, value in self.gauges.items():
            gauge.set(value)


@contextmanager
def exported(*sources: MadeUpServer | MadeUpRouter) -> Iterator[list[str]]:
    """Serve each source's metrics on loopback and let time pass for all; gives their `host:port`."""
    ended = threading.Event()

    def live() -> None:
        while not ended.wait(TICK_S):
            for source in sources:
                source.tick()

    served, addresses = [], []
    ticking = threading.Thread(target=live)
    try:
        for source in sources:
            port = free_port()
            served.append(start_http_server(port, HOST, source.registry))
            addresses.append(f"{HOST}:{port}")
        ticking.start()
        yield addresses
    finally:
        ended.set()
        if ticking.is_alive():
            ticking.join()
        for server, thread in served:
            server.shutdown()
            server.server_close()
            thread.join()
