r"""A policy for a busy server: smaller layer groups when many requests run or the last step was slow.

PYTHONPATH=examples .venv/bin/python -m sglang.launch_server --model-path MODEL --prefill-mode layered \
    --layered-policy policy_by_load:ByLoad
"""

from sglang_layered.hooks import LayerGroupPlan, SchedulerView

SLOW_STEP_S = 0.1


class ByLoad:
    """One group per 512 prompt tokens; per 256 with 8 or more running requests; half that when slow."""

    def plan(self, view: SchedulerView) -> LayerGroupPlan:
        """Use the view only: every rank must come to the same plan."""
        group_tokens = 256 if view.num_running >= 8 else 512
        if view.last_step is not None and view.last_step.duration_s > SLOW_STEP_S:
            group_tokens //= 2
        num_groups = -(-view.prompt_tokens // group_tokens)  # ceiling division
        return LayerGroupPlan.even(view.num_layers, min(max(num_groups, 1), view.num_layers))
