"""Single figures of one repetition, by name: what sweeps compare. docs/metrics.md defines every one."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from sglang_layered_lab.bench.beside import gaps_beside
from sglang_layered_lab.bench.metrics import Distribution, RunMetrics
from sglang_layered_lab.bench.record import Repetition

Unit = Literal["s", "share", "1/s", "bytes", "J", "requests", ""]
COVERAGE = "expert_coverage_ratio"
STATISTICS = {"mean": "mean", "p50": "p50", "p99": "p99", "worst": "max"}  # of a `Distribution`
PHASES = ("prompt", "hybrid", "decode")
TOKENS = {"total": ("prompt", "output"), "prompt": ("prompt",), "output": ("output",)}


@dataclass(frozen=True, slots=True)
class Scalar:
    """`better` is None for what is neither better nor worse."""

    title: str
    unit: Unit
    better: Literal["lower", "higher"] | None


SCALARS: Mapping[str, Scalar] = MappingProxyType(
    {
        "ttft_mean": Scalar("TTFT, mean", "s", "lower"),
        "ttft_p50": Scalar("TTFT, p50", "s", "lower"),
        "ttft_p99": Scalar("TTFT, p99", "s", "lower"),
        "tbt_mean": Scalar("TBT, mean", "s", "lower"),
        "tbt_p99": Scalar("TBT, p99 of all gaps", "s", "lower"),
        "tbt_worst": Scalar("TBT, worst gap of all", "s", "lower"),
        "worst_gap_p50": Scalar("worst gap of a request, p50", "s", "lower"),
        "beside_mean": Scalar("TBT beside prefill, mean", "s", "lower"),
        "beside_p99": Scalar("TBT beside prefill, p99", "s", "lower"),
        "beside_worst": Scalar("TBT beside prefill, worst", "s", "lower"),
        "tpot_mean": Scalar("TPOT, mean", "s", "lower"),
        "e2e_mean": Scalar("E2E, mean", "s", "lower"),
        "e2e_p50": Scalar("E2E, p50", "s", "lower"),
        "stall_mean": Scalar("stall, mean", "s", "lower"),
        "attainment": Scalar("requests within both limits", "share", "higher"),
        "attainment_ttft": Scalar("requests within the TTFT limit", "share", "higher"),
        "attainment_tbt": Scalar("requests with every gap within the TBT limit", "share", "higher"),
        "goodput": Scalar("goodput", "1/s", "higher"),
        "output_rate": Scalar("output tokens", "1/s", "higher"),
        "whole_rate": Scalar("output tokens, first sending to last token", "1/s", "higher"),
        "decode_batch": Scalar("average decode batch", "requests", None),
        "expert_bytes": Scalar("expert bytes a request", "bytes", "lower"),
        "coverage_prompt": Scalar("expert coverage, prompt", "share", None),
        "coverage_decode": Scalar("expert coverage, decode", "share", None),
        "coverage_hybrid": Scalar("expert coverage, hybrid", "share", None),
        "joules_total": Scalar("energy a token", "J", "lower"),
        "joules_prompt": Scalar("energy a prompt token", "J", "lower"),
        "joules_output": Scalar("energy an output token", "J", "lower"),
    }
)


def scalars_of(repetition: Repetition, seen: RunMetrics) -> dict[str, float | None]:
    """Every scalar of a repetition with these metrics; None where it has no such value."""
    return {name: None for name in SCALARS} | dict(_measured(repetition, seen)) | dict(_counted(repetition))


def _measured(repetition: Repetition, seen: RunMetrics) -> Iterator[tuple[str, float | None]]:
    """What the client's times tell."""
    beside = Distribution.of(gaps_beside(repetition.traces, repetition.background))
    for name, found in (*seen.latencies.items(), ("beside", beside)):
        for statistic, key in STATISTICS.items():
            if found is not None and f"{name}_{statistic}" in SCALARS:
                yield f"{name}_{statistic}", getattr(found, key)
    for limit, share in seen.attainment.items():
        yield "attainment" if limit == "both" else f"attainment_{limit}", share
    yield "goodput", seen.goodput_rps
    yield "output_rate", seen.throughput.output_tokens_per_s
    yield "decode_batch", seen.decode_batch
    lasts = [trace.arrivals[-1] for trace in repetition.traces if trace.arrivals]
    if lasts:
        length_s = max(each.time_s for each in lasts) - min(trace.sent_s for trace in repetition.traces)
        yield "whole_rate", sum(each.num_tokens for each in lasts) / length_s


def _counted(repetition: Repetition) -> Iterator[tuple[str, float | None]]:
    """What the server counted."""
    if loads := repetition.usage.get("expert_bytes"):
        yield "expert_bytes", sum(loads.values()) / len(repetition.traces)
    for phase in PHASES:
        yield f"coverage_{phase}", coverage(repetition, phase)
    joules, tokens = repetition.usage.get("joules"), repetition.usage.get("energy_tokens") or {}
    for kind, parts in TOKENS.items():
        count = sum(tokens.get(part, 0) for part in parts)
        if joules and count:
            yield f"joules_{kind}", sum(joules.values()) / count


def coverage(repetition: Repetition, phase: str) -> float | None:
    """Mean part of a layer's experts that a forward activated, over the forwards of a phase."""
    sums = {"sum": 0.0, "count": 0.0}
    for name, value in (repetition.usage.get("counters") or {}).items():
        for part in sums:
            if name.startswith(f"{COVERAGE}_{part}{{") and f'phase="{phase}"' in name:
                sums[part] += value
    return sums["sum"] / sums["count"] if sums["count"] else None
