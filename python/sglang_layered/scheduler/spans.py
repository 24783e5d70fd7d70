"""OpenTelemetry spans of layered steps, for `--enable-trace`: one a request and layer group.

They lie beside SGLang's own spans of a request's life. Upstream: srt/observability/req_time_stats.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sglang.srt.observability.req_time_stats import RequestStageConfig
from sglang.srt.observability.trace import get_global_tracing_enabled

from sglang_layered.core.cohort import Cohort

LAYER_GROUP = RequestStageConfig("layer_group", level=3)


def trace_group(reqs: Iterable[Any], cohort: Cohort, start_s: float, duration_s: float, step: int) -> None:
    """The cohort's requests were computed in its next group from `start_s` on, of `time.monotonic()`."""
    if not get_global_tracing_enabled():
        return
    group = cohort.group
    attributes = {
        "layers.start": group.start,
        "layers.end": group.end,
        "group.index": cohort.next_group,
        "group.count": cohort.plan.num_groups,
        "step": step,
    }
    for req in reqs:
        req.time_stats.trace_slice(LAYER_GROUP, start_s, start_s + duration_s, attributes)
