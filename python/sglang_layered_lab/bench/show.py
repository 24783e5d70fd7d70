"""A record as tables for a terminal: one column a repetition. Every figure is one that metrics.py defines."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf, nextafter

from rich.table import Table

from sglang_layered_lab.bench.metrics import Distribution, RunMetrics, Throughput, Window, throughput_of
from sglang_layered_lab.bench.record import BenchRecord, Repetition
from sglang_layered_lab.bench.scalars import coverage


def tables(record: BenchRecord) -> Iterator[Table]:
    """Metrics, then what the server counted, then what the client says of itself."""
    measured = [each.metrics(record.limits) for each in record.repetitions]
    name = str(record.spec["run"]["name"])
    columns = [
        dict(_metrics(seen)) | dict(_whole_run(each))
        for seen, each in zip(measured, record.repetitions, strict=True)
    ]
    yield _table(f"{name}: measured", columns)
    used = [dict(_usage(each)) for each in record.repetitions]
    if any(used):
        yield _table("counted by the server, whole run", used)
    yield _table("the client itself", [dict(_client(each)) for each in record.repetitions])


def _table(title: str, columns: list[dict[str, str]]) -> Table:
    table = Table("", *(f"run {index}" for index in range(len(columns))), title=title, title_justify="left")
    for row in dict.fromkeys(name for column in columns for name in column):
        table.add_row(row, *(column.get(row, "-") for column in columns))
    return table


def _metrics(seen: RunMetrics) -> Iterator[tuple[str, str]]:
    yield "requests due, finished, failed", f"{seen.num_due}, {seen.num_finished}, {seen.num_failed}"
    for name, values in (
        ("TTFT", seen.latencies.ttft_s),
        ("TBT, all gaps", seen.latencies.tbt_s),
        ("worst gap", seen.latencies.worst_gap_s),
        ("TPOT", seen.latencies.tpot_s),
        ("E2E", seen.latencies.e2e_s),
        ("stall", seen.latencies.stall_s),
    ):
        yield f"{name} ms: mean, p50, p99", _quantiles(values)
    for name, share in seen.attainment.items():
        yield f"met {name} %", f"{100 * share:.1f}"
    if seen.goodput_rps is not None:
        yield "goodput requests/s", f"{seen.goodput_rps:.2f}"
    yield "requests/s, output, all tokens/s", _flow(seen.throughput)
    yield "decode batch, over time", f"{seen.batch.time_weighted:.2f}"


def _usage(repetition: Repetition) -> Iterator[tuple[str, str]]:
    experts, joules = repetition.usage["expert_bytes"], repetition.usage["joules"]
    if experts:
        for phase, num_bytes in experts.items():
            yield f"expert GB, {phase}", f"{num_bytes / 1e9:.3f}"
        for phase in experts:
            if (share := coverage(repetition, phase)) is not None:
                yield f"expert coverage %, {phase}", f"{100 * share:.1f}"
        yield "expert GB a request", f"{sum(experts.values()) / 1e9 / len(repetition.traces):.4f}"
    if joules:
        tokens = repetition.usage["energy_tokens"] or {}
        total = sum(joules.values())
        yield "joules", f"{total:.1f}"
        if sum(tokens.values()):
            yield "J a token (prompt and output)", f"{total / sum(tokens.values()):.4f}"
    for doubt in repetition.usage["doubts"]:
        yield "doubt", doubt


def _client(repetition: Repetition) -> Iterator[tuple[str, str]]:
    client = repetition.client
    yield "share of a core", f"{client['core_share']:.2f}"
    for name, key in (("sent late", "lateness"), ("event loop late", "lag")):
        p99, worst = client[f"{key}_p99_s"], client[f"{key}_max_s"]
        yield f"{name} ms: p99, most", "-" if p99 is None else f"{1e3 * p99:.2f}, {1e3 * worst:.2f}"
    yield "streams open at most", str(client["max_open_streams"])


def _whole_run(repetition: Repetition) -> Iterator[tuple[str, str]]:
    """From the first sending to the last token: a short run has most of its tokens behind its window."""
    ends_s = [trace.arrivals[-1].time_s for trace in repetition.traces if trace.arrivals]
    if ends_s:
        whole = Window(min(trace.sent_s for trace in repetition.traces), nextafter(max(ends_s), inf))
        yield "the same, whole run", _flow(throughput_of(repetition.traces, whole))


def _flow(flow: Throughput) -> str:
    figures = (flow.requests_per_s, flow.output_tokens_per_s, flow.total_tokens_per_s)
    return ", ".join(
        "-" if each is None else f"{each:.{digits}f}" for each, digits in zip(figures, (2, 1, 1), strict=True)
    )


def _quantiles(values: Distribution | None) -> str:
    if values is None:
        return "-"
    return ", ".join(f"{1e3 * value:.1f}" for value in (values.mean, values.p50, values.p99))
