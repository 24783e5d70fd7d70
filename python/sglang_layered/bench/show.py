"""A record as tables for a terminal: one column a repetition. Every figure is one that metrics.py defines."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from sglang_layered.bench.metrics import Distribution, RunMetrics
from sglang_layered.bench.record import BenchRecord, Repetition
from sglang_layered.bench.scalars import coverage


def tables(record: BenchRecord) -> Iterator[Table]:
    """Metrics, then what the server counted, then what the client says of itself."""
    measured = [each.metrics(record.limits) for each in record.repetitions]
    name = str(record.spec["run"]["name"])
    yield _table(f"{name}: measured", [dict(_metrics(each)) for each in measured])
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
    flow = seen.throughput
    yield (
        "requests/s, output, all tokens/s",
        (f"{flow.requests_per_s:.2f}, {flow.output_tokens_per_s:.1f}, {flow.total_tokens_per_s:.1f}"),
    )
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


def _quantiles(values: Distribution | None) -> str:
    if values is None:
        return "-"
    return ", ".join(f"{1e3 * value:.1f}" for value in (values.mean, values.p50, values.p99))
