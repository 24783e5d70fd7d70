"""Single figures of one repetition, by name: what sweeps compare. docs/metrics.md defines every one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np

from sglang_layered.metrics.slo import SloLimits
from sglang_layered_lab.bench.beside import gaps_beside
from sglang_layered_lab.bench.compare import Better
from sglang_layered_lab.bench.metrics import Distribution, RunMetrics
from sglang_layered_lab.bench.record import Repetition

Unit = Literal["s", "share", "1/s", "bytes", "J", "requests", ""]
COVERAGE = "expert_coverage_ratio"


@dataclass(frozen=True, slots=True)
class Scalar:
    """`of` gives None where the repetition has no such value. `better` is None for what is neither."""

    title: str
    unit: Unit
    better: Better | None
    of: Callable[[Repetition, SloLimits], float | None]


def _latency(name: str, statistic: str) -> Callable[[Repetition, SloLimits], float | None]:
    def value(repetition: Repetition, limits: SloLimits) -> float | None:
        found: Distribution | None = getattr(repetition.metrics(limits).latencies, name)
        return None if found is None else float(getattr(found, statistic))

    return value


def _beside(
    statistic: Callable[[np.ndarray[tuple[int], np.dtype[np.float64]]], float],
) -> Callable[[Repetition, SloLimits], float | None]:
    def value(repetition: Repetition, limits: SloLimits) -> float | None:
        gaps_s = gaps_beside(repetition.traces, repetition.background)
        return float(statistic(gaps_s)) if len(gaps_s) else None

    return value


def _of_run(pick: Callable[[RunMetrics], float | None]) -> Callable[[Repetition, SloLimits], float | None]:
    return lambda repetition, limits: pick(repetition.metrics(limits))


def _expert_bytes(repetition: Repetition, limits: SloLimits) -> float | None:
    loads = repetition.usage["expert_bytes"]
    return sum(loads.values()) / len(repetition.traces) if loads else None


def _joules(*kinds: str) -> Callable[[Repetition, SloLimits], float | None]:
    def value(repetition: Repetition, limits: SloLimits) -> float | None:
        joules, tokens = repetition.usage["joules"], repetition.usage["energy_tokens"] or {}
        count = sum(tokens.get(kind, 0) for kind in kinds)
        return sum(joules.values()) / count if joules and count else None

    return value


def coverage(repetition: Repetition, phase: str) -> float | None:
    """Mean part of a layer's experts that a forward activated, over the forwards of a phase."""
    sums = {"sum": 0.0, "count": 0.0}
    for name, value in (repetition.usage["counters"] or {}).items():
        for part in sums:
            if name.startswith(f"{COVERAGE}_{part}{{") and f'phase="{phase}"' in name:
                sums[part] += value
    return sums["sum"] / sums["count"] if sums["count"] else None


def _coverage(phase: str) -> Callable[[Repetition, SloLimits], float | None]:
    return lambda repetition, limits: coverage(repetition, phase)


def _whole_rate(repetition: Repetition, limits: SloLimits) -> float | None:
    ended = [trace for trace in repetition.traces if trace.arrivals]
    if not ended:
        return None
    lasts = [trace.arrivals[-1] for trace in ended]
    length_s = max(each.time_s for each in lasts) - min(trace.sent_s for trace in repetition.traces)
    return sum(each.num_tokens for each in lasts) / length_s


SCALARS: Mapping[str, Scalar] = MappingProxyType(
    {
        "ttft_mean": Scalar("TTFT, mean", "s", "lower", _latency("ttft_s", "mean")),
        "ttft_p50": Scalar("TTFT, p50", "s", "lower", _latency("ttft_s", "p50")),
        "ttft_p99": Scalar("TTFT, p99", "s", "lower", _latency("ttft_s", "p99")),
        "tbt_mean": Scalar("TBT, mean", "s", "lower", _latency("tbt_s", "mean")),
        "tbt_p99": Scalar("TBT, p99 of all gaps", "s", "lower", _latency("tbt_s", "p99")),
        "tbt_worst": Scalar("TBT, worst gap of all", "s", "lower", _latency("tbt_s", "max")),
        "worst_gap_p50": Scalar("worst gap of a request, p50", "s", "lower", _latency("worst_gap_s", "p50")),
        "beside_mean": Scalar("TBT beside prefill, mean", "s", "lower", _beside(np.mean)),
        "beside_p99": Scalar(
            "TBT beside prefill, p99", "s", "lower", _beside(lambda gaps_s: float(np.quantile(gaps_s, 0.99)))
        ),
        "beside_worst": Scalar("TBT beside prefill, worst", "s", "lower", _beside(np.max)),
        "tpot_mean": Scalar("TPOT, mean", "s", "lower", _latency("tpot_s", "mean")),
        "e2e_mean": Scalar("E2E, mean", "s", "lower", _latency("e2e_s", "mean")),
        "e2e_p50": Scalar("E2E, p50", "s", "lower", _latency("e2e_s", "p50")),
        "stall_mean": Scalar("stall, mean", "s", "lower", _latency("stall_s", "mean")),
        "attainment": Scalar(
            "requests within both limits",
            "share",
            "higher",
            _of_run(lambda seen: seen.attainment.get("both")),
        ),
        "attainment_ttft": Scalar(
            "requests within the TTFT limit",
            "share",
            "higher",
            _of_run(lambda seen: seen.attainment.get("ttft")),
        ),
        "attainment_tbt": Scalar(
            "requests with every gap within the TBT limit",
            "share",
            "higher",
            _of_run(lambda seen: seen.attainment.get("tbt")),
        ),
        "goodput": Scalar("goodput", "1/s", "higher", _of_run(lambda seen: seen.goodput_rps)),
        "output_rate": Scalar(
            "output tokens", "1/s", "higher", _of_run(lambda seen: seen.throughput.output_tokens_per_s)
        ),
        "whole_rate": Scalar("output tokens, first sending to last token", "1/s", "higher", _whole_rate),
        "decode_batch": Scalar(
            "average decode batch", "requests", None, _of_run(lambda seen: seen.batch.time_weighted)
        ),
        "expert_bytes": Scalar("expert bytes a request", "bytes", "lower", _expert_bytes),
        "coverage_prompt": Scalar("expert coverage, prompt", "share", None, _coverage("prompt")),
        "coverage_decode": Scalar("expert coverage, decode", "share", None, _coverage("decode")),
        "coverage_hybrid": Scalar("expert coverage, hybrid", "share", None, _coverage("hybrid")),
        "joules_total": Scalar("energy a token", "J", "lower", _joules("prompt", "output")),
        "joules_prompt": Scalar("energy a prompt token", "J", "lower", _joules("prompt")),
        "joules_output": Scalar("energy an output token", "J", "lower", _joules("output")),
    }
)
