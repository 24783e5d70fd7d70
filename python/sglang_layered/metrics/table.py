"""Every metric of ours, declared once: instruments, docs/metrics.md and the dashboard follow from this table.

Names are given without SGLang's prefix `sglang:`; labels without SGLang's own (`model_name`, `engine_type`,
`tp_rank`, `pp_rank`, `moe_ep_rank`, and `dp_rank` where there is one), which every metric also has.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from sglang_layered.core.events import DropReason
from sglang_layered.core.view import StepKind

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

STEP_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
GROUPS = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 48.0, 64.0)
COHORT_TOKENS = tuple(float(2**power) for power in range(4, 17))
RATIOS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
TOKENS_PER_EXPERT = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0)


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric; `labels` are those it has beside SGLang's own, each with its possible values in `help`.

    A counter stands at 0 from the start, for the label values in `zeros` where it has labels.

    Tensor rank 0 of every pipeline stage, or of the `first` one, writes it, in every data-parallel replica.
    """

    name: str
    help: str
    labels: tuple[str, ...] = ()
    zeros: tuple[tuple[str, ...], ...] = ()
    buckets: tuple[float, ...] = ()
    needs: Needs = "layered"
    writer: Writer = "stage"

    @property
    def kind(self) -> Kind:
        """A histogram has buckets, and of the others a counter's name ends as Prometheus wants it."""
        if self.buckets:
            return "histogram"
        return "counter" if self.name.endswith("_total") else "gauge"


def each(values: Iterable[str]) -> tuple[tuple[str, ...], ...]:
    """The values of a single label."""
    return tuple((value,) for value in values)


MODE_CHANGES = (
    ("chunked", "operator"),
    ("layered", "operator"),
    ("chunked", DropReason.BROKEN_INVARIANT),
    ("chunked", "policy failed"),
)

METRICS = (
    Metric(
        "prefill_mode_info",
        "1 for the prefill mode in force (mode: chunked, layered) and its settings, 0 for one that was left.",
        ("mode", "policy", "execution"),
        needs="any",
    ),
    Metric(
        "layered_prefill_active",
        "1 while prompts run layer group by layer group, 0 while they go chunk by chunk.",
    ),
    Metric(
        "layered_mode_changes_total",
        "Changes of the prefill mode on the running server, to which mode and why.",
        ("mode", "reason"),
        MODE_CHANGES,
    ),
    Metric(
        "layered_steps_total",
        "Steps by kind: prefill, decode, layered, encoder.",
        ("kind",),
        each(get_args(StepKind)),
    ),
    Metric(
        "layered_step_seconds",
        "Time of a step's forward on its device by kind: prefill, decode, layered, encoder.",
        ("kind",),
        buckets=STEP_SECONDS,
    ),
    Metric("layered_groups_per_cohort", "Layer groups that a cohort ran in.", buckets=GROUPS),
    Metric("layered_cohort_tokens", "Prompt tokens to compute in a cohort.", buckets=COHORT_TOKENS),
    Metric("layered_cohorts_in_flight", "Cohorts between two layer groups."),
    Metric(
        "layered_cohort_groups",
        "Layer groups of the oldest cohort in flight by state: done, left; both 0 without one.",
        ("state",),
    ),
    Metric("layered_parked_bytes", "Bytes of prompt activations kept between two layer groups."),
    Metric(
        "layered_kv_slots",
        "KV slots in use by state: filled in all layers, partial while a cohort is in flight.",
        ("state",),
    ),
    Metric(
        "layered_dropped_cohorts_total",
        "Cohorts that left before their last layer group, by reason.",
        ("reason",),
        each(DropReason),
    ),
    Metric(
        "layered_overtaken_cohorts_total",
        "Times that a cohort waited at a group's edge while short prompts ran (--layered-max-parked).",
    ),
    Metric(
        "layered_left_requests_total",
        "Requests that were aborted in a cohort which went on without them.",
    ),
    Metric(
        "layered_step_budget_seconds",
        "What the next step of a cohort may take so that no running request's token is late.",
        buckets=STEP_SECONDS,
        needs="paces",
    ),
    Metric(
        "layered_steps_over_budget_total",
        "Steps of a cohort in which one layer was more than the budget allowed.",
        needs="paces",
    ),
    Metric(
        "layered_step_prediction_error_ratio",
        "Part by which the time of a step was predicted wrongly, by kind: prefill, decode, layered.",
        ("kind",),
        buckets=RATIOS,
        needs="learns",
    ),
    Metric(
        "layered_strategy_info",
        "1 for the strategy that the last layered step ran in: fused, sequential, concurrent.",
        ("strategy",),
    ),
    Metric(
        "expert_load_bytes_total",
        "Bytes of routed experts that were activated, by phase: prompt, decode, hybrid (rows of both).",
        ("phase",),
        each(("prompt", "decode", "hybrid")),
        needs="experts",
    ),
    Metric(
        "expert_coverage_ratio",
        "Part of a layer's routed experts that a step activated, mean over its layers, by phase.",
        ("phase",),
        buckets=RATIOS,
        needs="experts",
    ),
    Metric(
        "expert_tokens_per_active_expert",
        "Rows that an activated expert computed in a step, mean over its layers, by phase.",
        ("phase",),
        buckets=TOKENS_PER_EXPERT,
        needs="experts",
    ),
    Metric(
        "energy_joules_total",
        "Energy of a device since the server started (source: nvml-energy, nvml-power, rapl; replay is"
        " none).",
        ("device", "source"),
        needs="energy",
        writer="first",
    ),
    Metric(
        "energy_idle_watts",
        "Power of a device measured at start, with the model loaded and nothing running.",
        ("device", "source"),
        needs="energy",
        writer="first",
    ),
    Metric(
        "tokens_for_energy_total",
        "Tokens to divide energy by, by kind: prompt (computed, not cached), output.",
        ("kind",),
        each(("prompt", "output")),
        needs="energy",
        writer="first",
    ),
    Metric(
        "slo_requests_total",
        "Finished requests by slo (ttft, tbt, both) and whether they met it (met: true, false).",
        ("slo", "met"),
        needs="slo",
        writer="first",
    ),
    Metric(
        "slo_limit_seconds", "The limits in force, by slo: ttft, tbt.", ("slo",), needs="slo", writer="first"
    ),
)
