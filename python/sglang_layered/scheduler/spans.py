"""OpenTelemetry spans of layered steps, for `--enable-trace`: one a request and layer group.

They lie beside SGLang's own spans of a request's life. Upstream: srt/observability/req_time_stats.py.
"""

from __future__ import annotations

from sglang.srt.observability.req_time_stats import RequestStageConfig
from sglang.srt.observability.trace import get_global_tracing_enabled

from sglang_layered.scheduler.stream import Handlers, StepDone

LAYER_GROUP = RequestStageConfig("layer_group", level=3)


class Spans:
    """Writes them while tracing is enabled, which SGLang decides when a server starts."""

    def handlers(self) -> Handlers:
        """Nothing without tracing."""
        return {StepDone: self._step_done} if get_global_tracing_enabled() else {}

    def _step_done(self, event: StepDone) -> None:
        step, cohort = event.step, event.step.cohort
        if cohort is None:
            return
        attributes = {
            "layers.start": cohort.group.start,
            "layers.end": cohort.group.end,
            "group.index": cohort.next_group,
            "group.count": cohort.plan.num_groups,
            "step": step.number,
        }
        end_s = step.timer.start_s + event.timing.duration_s
        for req, _ in step.prompt:
            req.time_stats.trace_slice(LAYER_GROUP, step.timer.start_s, end_s, attributes)
