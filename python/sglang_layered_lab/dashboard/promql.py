"""Pieces of PromQL that the dashboard's queries are put together from.

Values of several servers are added up by prefill mode. A series learns its mode from the recorded series
`instance:sglang_prefill_mode:info` (docker/monitoring/prometheus/recording.yml), one a server, so that any
metric of SGLang can be compared between layered and chunked servers.
"""

from __future__ import annotations

from sglang_layered.metrics.table import PREFIX

CHOSEN = 'instance=~"$instance",model_name=~"$model"'
MODE = 'instance:sglang_prefill_mode:info{mode=~"$mode"}'
INTERVAL = "$__rate_interval"


def series(name: str, **labels: str) -> str:
    """Select a metric of the chosen servers, given without SGLang's prefix; `labels` must be equal."""
    matchers = ",".join([CHOSEN, *(f'{label}="{value}"' for label, value in labels.items())])
    return f"{PREFIX}{name}{{{matchers}}}"


def rate(name: str, window: str = INTERVAL, **labels: str) -> str:
    """Growth of a counter per second."""
    return f"rate({series(name, **labels)}[{window}])"


def by_mode(expr: str, *labels: str, how: str = "sum") -> str:
    """Aggregate `expr` by prefill mode and `labels`; `expr` keeps the label `instance`."""
    return f"{how} by ({', '.join(['mode', *labels])}) ({expr} * on (instance) group_left (mode) {MODE})"


def quantile(level: float, name: str, *labels: str) -> str:
    """Quantile of a histogram by mode and `labels`."""
    return f"histogram_quantile({level:g}, {by_mode(rate(name + '_bucket'), 'le', *labels)})"


def mean(name: str, *labels: str) -> str:
    """Mean of a histogram's observations by mode and `labels`."""
    return ratio(by_mode(rate(f"{name}_sum"), *labels), by_mode(rate(f"{name}_count"), *labels))


def ratio(part: str, whole: str, join: str = "") -> str:
    """Divide two vectors, with no value where `whole` is 0; `join` is PromQL's matching clause, if any."""
    return f"{part} / {join + ' ' if join else ''}({whole} > 0)"


def heat(name: str) -> str:
    """Observations per second in each bucket of a histogram, cumulative over `le`."""
    return f"sum by (le) ({rate(name + '_bucket')} * on (instance) group_left (mode) {MODE})"


def tokens(kind: str) -> str:
    """Tokens per second by mode, from SGLang's own counter: prefill_compute, prefill_cache, decode.

    Every pipeline stage counts the same tokens, so the first one's are taken.
    """
    return by_mode(f"sum by (instance) ({rate('realtime_tokens_total', mode=kind, pp_rank='0')})")
