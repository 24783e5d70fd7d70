"""Every metric of ours, declared once: instruments, docs/metrics.md and the dashboard follow from this table.

Names are given without SGLang's prefix `sglang:`; labels without SGLang's own (`model_name`, `engine_type`,
`tp_rank`, `pp_rank`, `moe_ep_rank`, and `dp_rank` where there is one), which every metric also has.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PREFIX = "sglang:"

Kind = Literal["counter", "gauge", "histogram"]
Needs = Literal["layered", "learns", "paces", "any", "experts", "energy", "slo"]
Writer = Literal["stage", "first"]

# What makes a metric appear, beside --enable-metrics.
NEEDS: dict[Needs, str] = {
    "layered": "`--prefill-mode layered`",
    "learns": "a `--layered-policy` that learns, as `auto`",
    "paces": "a `--layered-policy` that paces steps, as `auto`",
    "any": "nothing more",
    "experts": "`--enable-expert-traffic-metrics`",
    "energy": "`--enable-energy-metrics`",
    "slo": "`--slo-ttft-ms` or `--slo-tbt-ms`",
}
# Which scheduler process writes a metric.
WRITERS: dict[Writer, str] = {
    "stage": "tensor rank 0 of every pipeline stage and data-parallel replica",
    "first": "tensor rank 0 of the first pipeline stage of every data-parallel replica",
}

STEP_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
GROUPS = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 48.0, 64.0)
COHORT_TOKENS = tuple(float(2**power) for power in range(4, 17))
RATIOS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
TOKENS_PER_EXPERT = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0)


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric; `labels` are those it has beside SGLang's own, each with its possible values in `help`."""

    name: str
    kind: Kind
    help: str
    needs: Needs
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    writer: Writer = "stage"


METRICS = (
    Metric(
        "prefill_mode_info",
        "gauge",
        "1 for the prefill mode in force (mode: chunked, layered) and its settings, 0 for one that was left.",
        "any",
        ("mode", "policy", "execution"),
    ),
    Metric(
        "layered_prefill_active",
        "gauge",
        "1 while prompts run layer group by layer group, 0 while they go chunk by chunk.",
        "layered",
    ),
    Metric(
        "layered_mode_changes_total",
        "counter",
        "Changes of the prefill mode on the running server, to which mode and why.",
        "layered",
        ("mode", "reason"),
    ),
    Metric(
        "layered_steps_total", "counter", "Steps by kind: prefill, decode, layered.", "layered", ("kind",)
    ),
    Metric(
        "layered_step_seconds",
        "histogram",
        "Time of a step's forward on its device by kind: prefill, decode, layered.",
        "layered",
        ("kind",),
        STEP_SECONDS,
    ),
    Metric(
        "layered_groups_per_cohort",
        "histogram",
        "Layer groups that a cohort ran in.",
        "layered",
        buckets=GROUPS,
    ),
    Metric(
        "layered_cohort_tokens",
        "histogram",
        "Prompt tokens to compute in a cohort.",
        "layered",
        buckets=COHORT_TOKENS,
    ),
    Metric("layered_cohorts_in_flight", "gauge", "Cohorts between two layer groups.", "layered"),
    Metric(
        "layered_cohort_groups",
        "gauge",
        "Layer groups of the oldest cohort in flight by state: done, left; both 0 without one.",
        "layered",
        ("state",),
    ),
    Metric(
        "layered_parked_bytes",
        "gauge",
        "Bytes of prompt activations kept between two layer groups.",
        "layered",
    ),
    Metric(
        "layered_kv_slots",
        "gauge",
        "KV slots in use by state: filled in all layers, partial while a cohort is in flight.",
        "layered",
        ("state",),
    ),
    Metric(
        "layered_dropped_cohorts_total",
        "counter",
        "Cohorts that left before their last layer group, by reason.",
        "layered",
        ("reason",),
    ),
    Metric(
        "layered_step_budget_seconds",
        "histogram",
        "What the next step of a cohort may take so that no running request's token is late.",
        "paces",
        buckets=STEP_SECONDS,
    ),
    Metric(
        "layered_steps_over_budget_total",
        "counter",
        "Steps of a cohort in which one layer was more than the budget allowed.",
        "paces",
    ),
    Metric(
        "layered_step_prediction_error_ratio",
        "histogram",
        "Part by which the time of a step was predicted wrongly, by kind: prefill, decode, layered.",
        "learns",
        ("kind",),
        RATIOS,
    ),
    Metric(
        "layered_strategy_info",
        "gauge",
        "1 for the strategy that the last layered step ran in: fused, sequential, concurrent.",
        "layered",
        ("strategy",),
    ),
    Metric(
        "expert_load_bytes_total",
        "counter",
        "Bytes of routed experts that were activated, by phase: prompt, decode, hybrid (rows of both).",
        "experts",
        ("phase",),
    ),
    Metric(
        "expert_coverage_ratio",
        "histogram",
        "Part of a layer's routed experts that a step activated, mean over its layers, by phase.",
        "experts",
        ("phase",),
        RATIOS,
    ),
    Metric(
        "expert_tokens_per_active_expert",
        "histogram",
        "Rows that an activated expert computed in a step, mean over its layers, by phase.",
        "experts",
        ("phase",),
        TOKENS_PER_EXPERT,
    ),
    Metric(
        "energy_joules_total",
        "counter",
        "Energy of a device since the server started (source: nvml-energy, nvml-power, rapl; replay is"
        " none).",
        "energy",
        ("device", "source"),
        writer="first",
    ),
    Metric(
        "energy_idle_watts",
        "gauge",
        "Power of a device measured at start, with the model loaded and nothing running.",
        "energy",
        ("device", "source"),
        writer="first",
    ),
    Metric(
        "tokens_for_energy_total",
        "counter",
        "Tokens to divide energy by, by kind: prompt (computed, not cached), output.",
        "energy",
        ("kind",),
        writer="first",
    ),
    Metric(
        "slo_requests_total",
        "counter",
        "Finished requests by slo (ttft, tbt, both) and whether they met it (met: true, false).",
        "slo",
        ("slo", "met"),
        writer="first",
    ),
    Metric(
        "slo_limit_seconds",
        "gauge",
        "The limits in force, by slo: ttft, tbt.",
        "slo",
        ("slo",),
        writer="first",
    ),
)
