"""Rows of what the service costs and gives: energy, SLO, KV cache and queue, router."""

from __future__ import annotations

from sglang_layered_lab.dashboard.model import Panel, Query, Row
from sglang_layered_lab.dashboard.promql import by_mode, rate, ratio, series, tokens

_POWER = by_mode(rate("energy_joules_total"))


def _joules_per(kind: str | None) -> str:
    labels = {} if kind is None else {"kind": kind}
    return ratio(_POWER, by_mode(rate("tokens_for_energy_total", **labels)))


ENERGY = Row(
    "Energy",
    (
        Panel(
            "Power, by device",
            "watt",
            "Growth of the device's energy counter. Dashed: draw measured at start, with the model loaded "
            "and nothing running.",
            (
                Query(by_mode(rate("energy_joules_total"), "device"), "{{mode}} {{device}}"),
                Query(
                    by_mode(series("energy_idle_watts"), "device"), "{{mode}} {{device}} idle", dashed=True
                ),
            ),
        ),
        Panel(
            "Energy per token",
            "joule",
            "All energy of the devices, idle draw included, over the tokens of one kind, and over all. "
            "prompt: computed, not from the cache.",
            (
                Query(_joules_per("prompt"), "{{mode}} / prompt token"),
                Query(_joules_per("output"), "{{mode}} / output token"),
                Query(_joules_per(None), "{{mode}} / token", dashed=True),
            ),
        ),
    ),
    columns=2,
)

_WINDOW = "5m"
_FINISHED = "slo_requests_total"
SLO = Row(
    "Service level (SLO)",
    (
        Panel(
            "Attainment over 5 minutes",
            "percentunit",
            "Part of the finished requests that met the limit. tbt: only if every gap between two tokens did "
            "so. Dashed: the objective, set in recording.yml.",
            (
                Query(
                    ratio(
                        by_mode(rate(_FINISHED, _WINDOW, met="true"), "slo"),
                        by_mode(rate(_FINISHED, _WINDOW), "slo"),
                    ),
                    "{{mode}} {{slo}}",
                ),
                Query("slo:sglang_objective:ratio", "objective", dashed=True),
            ),
        ),
        Panel(
            "Goodput and all requests",
            "reqps",
            "Finished requests per second. Goodput: those that met both limits.",
            (
                Query(by_mode(rate(_FINISHED, slo="both", met="true")), "{{mode}} goodput"),
                Query(by_mode(rate(_FINISHED, slo="both")), "{{mode}} all", dashed=True),
            ),
        ),
        Panel(
            "Burn rate of the error budget",
            "short",
            "Missed part over the part that the objective allows: 1 uses the budget up just in time. The "
            "alerts read the same series. All servers of a model together.",
            (
                Query('model_slo:sglang_burn:rate5m{model_name=~"$model"}', "{{slo}} 5 min"),
                Query('model_slo:sglang_burn:rate1h{model_name=~"$model"}', "{{slo}} 1 h", dashed=True),
            ),
        ),
        Panel(
            "Limits in force",
            "s",
            "--slo-ttft-ms and --slo-tbt-ms of the servers.",
            (Query(by_mode(series("slo_limit_seconds"), "slo", how="max"), "{{mode}} {{slo}}"),),
        ),
    ),
    columns=4,
)

_CACHED = f"({tokens('prefill_cache')} or 0 * {tokens('prefill_compute')})"
KV = Row(
    "KV cache and queue",
    (
        Panel(
            "KV slots in use, by state",
            "short",
            "filled: computed in all layers, cached prefixes too. partial: of a cohort in flight, computed "
            "in the layers so far.",
            (Query(by_mode(series("layered_kv_slots", pp_rank="0"), "state"), "{{mode}} {{state}}"),),
            "stacked",
        ),
        Panel(
            "KV cache in use",
            "percentunit",
            "Part of the KV slots that requests hold. SGLang's own gauge.",
            (Query(by_mode(series("token_usage"), "instance", how="max"), "{{mode}} {{instance}}"),),
        ),
        Panel(
            "Prompt tokens from the prefix cache",
            "percentunit",
            "Part of the prompt tokens that needed no computing. From SGLang's token counters.",
            (Query(ratio(_CACHED, f"({_CACHED} + {tokens('prefill_compute')})"), "{{mode}}"),),
        ),
        Panel(
            "Requests",
            "short",
            "Running and waiting, as SGLang last reported them.",
            (
                Query(by_mode(series("num_running_reqs", pp_rank="0")), "{{mode}} running"),
                Query(by_mode(series("num_queue_reqs", pp_rank="0")), "{{mode}} waiting", dashed=True),
            ),
        ),
    ),
    columns=4,
)

_ROUTED = "smg_router_request_duration_seconds_bucket[$__rate_interval]"
ROUTER = Row(
    "Router",
    (
        Panel(
            "Requests routed per second",
            "reqps",
            "By endpoint. This row has data only where SGLang's router runs.",
            (
                Query(
                    "sum by (endpoint) (rate(smg_router_requests_total[$__rate_interval]))", "{{endpoint}}"
                ),
                Query(
                    "sum by (status_code) (rate(smg_http_responses_total[$__rate_interval]))",
                    "HTTP {{status_code}}",
                    dashed=True,
                ),
            ),
        ),
        Panel(
            "Request time in the router",
            "s",
            "From routing a request to the worker's answer, or to the head of a stream.",
            (
                Query(f"histogram_quantile(0.5, sum by (le) (rate({_ROUTED})))", "p50"),
                Query(f"histogram_quantile(0.99, sum by (le) (rate({_ROUTED})))", "p99", dashed=True),
            ),
        ),
        Panel(
            "Workers: requests in hand",
            "short",
            "Requests that the router has given to a worker and that are not done.",
            (Query("sum by (worker) (smg_worker_requests_active)", "{{worker}}"),),
            "stacked",
        ),
        Panel(
            "Workers: health",
            "short",
            "1 while the worker passes its health checks. Dashed: its circuit breaker, 0 while closed.",
            (
                Query("min by (worker) (smg_worker_health)", "{{worker}}"),
                Query("max by (worker) (smg_worker_cb_state)", "breaker {{worker}}", dashed=True),
            ),
            "steps",
        ),
    ),
    columns=4,
)
