"""Experts that steps read, and limits that requests met, from two samples. It knows no terminal."""

from __future__ import annotations

from dataclasses import dataclass

from sglang_layered_lab.watch.sample import Histogram, Sample, increases, observed, total

PHASES = ("prompt", "decode", "hybrid")
SLOS = ("ttft", "tbt", "both")


@dataclass(frozen=True, slots=True)
class ExpertLine:
    """Routed experts of the steps of one phase over the window; docs/metrics.md defines coverage."""

    phase: str
    bytes_per_s: float
    coverage: Histogram
    tokens_per_expert: Histogram


@dataclass(frozen=True, slots=True)
class SloLine:
    """Requests that finished in the window and ever, and those of them that met the limit.

    `limits_s` are all limits in force: one, several where replicas differ, none for `both`.
    """

    slo: str
    limits_s: tuple[float, ...]
    met: float
    finished: float
    met_ever: float
    finished_ever: float


def expert_lines(old: Sample, new: Sample, window_s: float) -> tuple[ExpertLine, ...]:
    """One line per phase; none where the server does not count experts."""
    names = (
        "expert_load_bytes_total",
        "expert_coverage_ratio_count",
        "expert_tokens_per_active_expert_count",
    )
    if not any(new.of(name) for name in names):
        return ()
    moved_bytes = increases(old, new, "expert_load_bytes_total")
    return tuple(
        ExpertLine(
            phase=phase,
            bytes_per_s=total(moved_bytes, phase=phase) / window_s,
            coverage=observed(old, new, "expert_coverage_ratio", phase=phase),
            tokens_per_expert=observed(old, new, "expert_tokens_per_active_expert", phase=phase),
        )
        for phase in PHASES
    )


def slo_lines(old: Sample, new: Sample) -> tuple[SloLine, ...]:
    """One line per limit and one for both together; none where no limit is set."""
    limits, ever = new.of("slo_limit_seconds"), new.of("slo_requests_total")
    recent = increases(old, new, "slo_requests_total")
    in_force = {dict(key).get("slo") for key in (*limits, *ever)}
    return tuple(
        SloLine(
            slo=slo,
            limits_s=tuple(sorted(set(new.of("slo_limit_seconds", slo=slo).values()))),
            met=total(recent, slo=slo, met="true"),
            finished=total(recent, slo=slo),
            met_ever=total(ever, slo=slo, met="true"),
            finished_ever=total(ever, slo=slo),
        )
        for slo in SLOS
        if slo in in_force
    )
