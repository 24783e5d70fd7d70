"""A record as tables for a terminal: one column a repetition. Every figure is one that metrics.py defines."""

from collections.abc import Iterator
from math import inf, nextafter

from rich.table import Table

from sglang_layered_lab.bench.metrics import RunMetrics, Throughput, Window, throughput_of
from sglang_layered_lab.bench.record import BenchRecord, Repetition
from sglang_layered_lab.bench.scalars import scalars_of

LATENCIES = {
    "ttft": "TTFT",
    "tbt": "TBT, all gaps",
    "worst_gap": "worst gap",
    "tpot": "TPOT",
    "e2e": "E2E",
    "stall": "stall",
}


def tables(record: BenchRecord) -> Iterator[Table]:
    """Metrics, then what the server counted, then what the client says of itself."""
    seen = [(each, each.metrics(record.limits)) for each in record.repetitions]
    yield _table(f"{record.spec['run']['name']}: measured", [dict(_measured(*each)) for each in seen])
    used = [dict(_usage(*each)) for each in seen]
    if any(used):
        yield _table("counted by the server, whole run", used)
    yield _table("the client itself", [dict(_client(each)) for each, _ in seen])


def _table(title: str, columns: list[dict[str, str]]) -> Table:
    table = Table("", *(f"run {index}" for index in range(len(columns))), title=title, title_justify="left")
    for row in dict.fromkeys(name for column in columns for name in column):
        table.add_row(row, *(column.get(row, "-") for column in columns))
    return table


def _measured(repetition: Repetition, seen: RunMetrics) -> Iterator[tuple[str, str]]:
    yield "requests due, finished, failed", f"{seen.num_due}, {seen.num_finished}, {seen.num_failed}"
    for name, shown in LATENCIES.items():
        found = seen.latencies.get(name)
        quantiles = () if found is None else (found.mean, found.p50, found.p99)
        yield f"{shown} ms: mean, p50, p99", ", ".join(f"{1e3 * value:.1f}" for value in quantiles) or "-"
    for name, share in seen.attainment.items():
        yield f"met {name} %", f"{100 * share:.1f}"
    if seen.goodput_rps is not None:
        yield "goodput requests/s", f"{seen.goodput_rps:.2f}"
    yield "requests/s, output, all tokens/s", _flow(seen.throughput)
    yield "decode batch, over time", f"{seen.decode_batch:.2f}"
    ends_s = [trace.arrivals[-1].time_s for trace in repetition.traces if trace.arrivals]
    if ends_s:  # a short run has most of its tokens behind its window
        whole = Window(min(trace.sent_s for trace in repetition.traces), nextafter(max(ends_s), inf))
        yield "the same, whole run", _flow(throughput_of(repetition.traces, whole))


def _flow(flow: Throughput) -> str:
    figures = zip(
        (flow.requests_per_s, flow.output_tokens_per_s, flow.total_tokens_per_s), (2, 1, 1), strict=True
    )
    return ", ".join("-" if each is None else f"{each:.{digits}f}" for each, digits in figures)


def _usage(repetition: Repetition, seen: RunMetrics) -> Iterator[tuple[str, str]]:
    scalars, phases = scalars_of(repetition, seen), repetition.usage["expert_bytes"] or {}
    for phase, num_bytes in phases.items():
        yield f"expert GB, {phase}", f"{num_bytes / 1e9:.3f}"
    for phase in phases:
        if (share := scalars[f"coverage_{phase}"]) is not None:
            yield f"expert coverage %, {phase}", f"{100 * share:.1f}"
    if (num_bytes := scalars["expert_bytes"]) is not None:
        yield "expert GB a request", f"{num_bytes / 1e9:.4f}"
    if joules := repetition.usage["joules"]:
        yield "joules", f"{sum(joules.values()):.1f}"
    if (joules_total := scalars["joules_total"]) is not None:
        yield "J a token (prompt and output)", f"{joules_total:.4f}"
    for doubt in repetition.usage["doubts"]:
        yield "doubt", doubt


def _client(repetition: Repetition) -> Iterator[tuple[str, str]]:
    client = repetition.client
    yield "share of a core", f"{client['core_share']:.2f}"
    for name, key in (("sent late", "lateness"), ("event loop late", "lag")):
        p99, worst = client[f"{key}_p99_s"], client[f"{key}_max_s"]
        yield f"{name} ms: p99, most", "-" if p99 is None else f"{1e3 * p99:.2f}, {1e3 * worst:.2f}"
    yield "streams open at most", str(client["max_open_streams"])
