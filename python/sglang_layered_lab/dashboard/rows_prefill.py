"""Rows of what layered prefill changes: latency, layers, experts."""

from __future__ import annotations

from sglang_layered_lab.dashboard.model import Panel, Query, Row
from sglang_layered_lab.dashboard.promql import by_mode, heat, mean, quantile, rate, ratio, series, tokens


def _quantiles(name: str, *levels: float) -> tuple[Query, ...]:
    return tuple(Query(quantile(level, name), f"{{{{mode}}}} p{100 * level:g}") for level in levels)


def _latency(short: str, name: str, what: str) -> tuple[Panel, Panel]:
    """Quantiles over time, and all observations as a heatmap."""
    return (
        Panel(f"{short}, quantiles", "s", what, _quantiles(name, 0.5, 0.95, 0.99)),
        Panel(
            f"{short}, distribution",
            "s",
            f"{what} Colour: observations per second in a bucket.",
            (Query(heat(name), "{{le}}"),),
            "heatmap",
        ),
    )


_TTFT = _latency(
    "Time to first token",
    "time_to_first_token_seconds",
    "From a request's arrival to its first token, queueing included. SGLang's own histogram.",
)
_ITL = _latency(
    "Inter-token latency",
    "inter_token_latency_seconds",
    "Between two tokens of a request, one observation a token. SGLang's own histogram.",
)
_E2E = _latency(
    "Request, end to end",
    "e2e_request_latency_seconds",
    "From a request's arrival to its last token. SGLang's own histogram.",
)
LATENCY = Row("Latency", (_TTFT[0], _ITL[0], _E2E[0], _TTFT[1], _ITL[1], _E2E[1]))

LAYERS = Row(
    "Layers",
    (
        Panel(
            "Steps per second, by kind",
            "ops",
            "First pipeline stage. prefill: a whole prompt batch. decode: decode rows only. layered: one "
            "layer group of a cohort beside the decode rows.",
            (Query(by_mode(rate("layered_steps_total", pp_rank="0"), "kind"), "{{mode}} {{kind}}"),),
        ),
        Panel(
            "Step time, by kind",
            "s",
            "Time of a step's forward on its device. A layered step delays every running request by what it "
            "takes longer than a decode step.",
            (
                Query(quantile(0.5, "layered_step_seconds", "kind"), "{{mode}} {{kind}} p50"),
                Query(quantile(0.99, "layered_step_seconds", "kind"), "{{mode}} {{kind}} p99", dashed=True),
            ),
        ),
        Panel(
            "Layer groups of a cohort",
            "short",
            "How many groups the policy cut a cohort into; it needs that many layered steps.",
            (
                Query(mean("layered_groups_per_cohort"), "{{mode}} mean"),
                Query(quantile(0.95, "layered_groups_per_cohort"), "{{mode}} p95", dashed=True),
            ),
        ),
        Panel(
            "Prompt tokens of a cohort",
            "short",
            "Tokens to compute, without those from the prefix cache.",
            (
                Query(mean("layered_cohort_tokens"), "{{mode}} mean"),
                Query(quantile(0.95, "layered_cohort_tokens"), "{{mode}} p95", dashed=True),
            ),
        ),
        Panel(
            "Progress of the oldest cohort",
            "short",
            "Layer groups done and left of the oldest cohort in flight; both are 0 without one. Sampled at "
            "each scrape.",
            (
                Query(
                    by_mode(series("layered_cohort_groups", pp_rank="0"), "instance", "state"),
                    "{{mode}} {{state}} {{instance}}",
                ),
            ),
            "stacked",
        ),
        Panel(
            "Step budget under policy auto",
            "s",
            "What the next step of a cohort may take so that no running request's token is late.",
            (
                Query(quantile(0.5, "layered_step_budget_seconds"), "{{mode}} p50"),
                Query(quantile(0.05, "layered_step_budget_seconds"), "{{mode}} p5", dashed=True),
            ),
        ),
        Panel(
            "Steps over budget per second",
            "ops",
            "Steps of a cohort in which one layer was more than policy auto's budget: its limit cannot be "
            "kept.",
            (Query(by_mode(rate("layered_steps_over_budget_total")), "{{mode}}"),),
        ),
        Panel(
            "Step times predicted wrongly",
            "percentunit",
            "Part by which policy auto was wrong about the time of a step, by kind.",
            (
                Query(quantile(0.5, "layered_step_prediction_error_ratio", "kind"), "{{mode}} {{kind}} p50"),
                Query(
                    quantile(0.9, "layered_step_prediction_error_ratio", "kind"),
                    "{{mode}} {{kind}} p90",
                    dashed=True,
                ),
            ),
        ),
        Panel(
            "Parked prompt activations",
            "bytes",
            "Kept between two layer groups, all stages and replicas together. Sampled at each scrape.",
            (Query(by_mode(series("layered_parked_bytes"), "instance"), "{{mode}} {{instance}}"),),
        ),
        Panel(
            "Dropped cohorts per second, by reason",
            "ops",
            "Cohorts that left before their last layer group: aborted, KV pool full, broken invariant.",
            (
                Query(
                    by_mode(rate("layered_dropped_cohorts_total", pp_rank="0"), "reason"),
                    "{{mode}} {{reason}}",
                ),
            ),
        ),
        Panel(
            "Prefill mode in force",
            "short",
            "1 for the mode a server runs in. A layered server that shows chunked has left layered mode.",
            (
                Query(f"max by (instance, mode) ({series('prefill_mode_info')})", "{{mode}} {{instance}}"),
                Query(
                    f"min by (instance) ({series('layered_prefill_active')})",
                    "active {{instance}}",
                    dashed=True,
                ),
            ),
            "steps",
        ),
        Panel(
            "Strategy of the last layered step",
            "short",
            "1 for the way the step ran: fused, sequential or concurrent.",
            (
                Query(
                    by_mode(series("layered_strategy_info"), "strategy", how="max"), "{{mode}} {{strategy}}"
                ),
            ),
            "steps",
        ),
    ),
)

_EXPERT_BYTES = by_mode(rate("expert_load_bytes_total"))
MOE = Row(
    "Experts (MoE)",
    (
        Panel(
            "Expert coverage of a step, by phase",
            "percentunit",
            "Part of a layer's routed experts that a step activated, mean over layers and steps. "
            "hybrid: steps with rows of prompts and of running requests.",
            (Query(mean("expert_coverage_ratio", "phase"), "{{mode}} {{phase}}"),),
        ),
        Panel(
            "Expert bytes per second, by phase",
            "Bps",
            "Bytes of activated routed experts: the least that must be read from memory.",
            (Query(by_mode(rate("expert_load_bytes_total"), "phase"), "{{mode}} {{phase}}"),),
        ),
        Panel(
            "Expert bytes per token",
            "bytes",
            "All expert bytes, whatever their phase, over prompt tokens computed, and over output tokens.",
            (
                Query(ratio(_EXPERT_BYTES, tokens("prefill_compute")), "{{mode}} / prompt token"),
                Query(ratio(_EXPERT_BYTES, tokens("decode")), "{{mode}} / output token", dashed=True),
            ),
        ),
        Panel(
            "Rows per active expert, by phase",
            "short",
            "Rows that an activated expert computed in a step, mean over layers and steps: "
            "more is better reuse.",
            (Query(mean("expert_tokens_per_active_expert", "phase"), "{{mode}} {{phase}}"),),
        ),
    ),
    columns=4,
)
