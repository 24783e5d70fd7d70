"""From a prompt batch that SGLang chose to the layer groups of its cohort."""

from __future__ import annotations

import logging
from typing import Any

from sglang.srt.managers.schedule_batch import ScheduleBatch

from sglang_layered.core.layer_shape import LayerShape
from sglang_layered.core.plan import LayerGroupPlan
from sglang_layered.core.stages import PipelineStages
from sglang_layered.core.view import SchedulerView, StepTiming
from sglang_layered.errors import PlanError
from sglang_layered.scheduler.control import Controls

logger = logging.getLogger(__name__)

DENSE = (
    "Layered prefill on a dense model saves no expert loads: expect steadier tokens at a later first token"
    " (docs/models.md); a higher --layered-group-tokens gives fewer groups and an earlier first token"
)


def warn_of_dense(layers: tuple[LayerShape, ...]) -> None:
    """Say in one line what layered prefill does to a model without experts."""
    if layers and not any(layer.num_experts for layer in layers):
        logger.warning(DENSE)


class Planner:
    """Shows the policy in force what it may know, and checks what it says.

    It plans the layers of each pipeline stage as a model of their own.
    """

    def __init__(
        self, scheduler: Any, controls: Controls, stages: PipelineStages, layers: tuple[LayerShape, ...]
    ) -> None:
        self._scheduler = scheduler
        self._controls = controls
        self._stages = stages
        self._shapes = [layers[stage.start : stage.end] for stage in stages.layers]

    def plan(self, batch: ScheduleBatch, last_step: StepTiming | None) -> LayerGroupPlan:
        """The policy's plan for these prompts.

        Raises:
            PlanError: the policy gave no plan for this model. Whatever else the policy raises passes.
        """
        policy, plans = self._controls.policy, []
        for stage, layers in zip(self._stages.layers, self._shapes, strict=True):
            plan = policy.plan(self._view(batch, last_step, stage.num_layers, layers))
            if not isinstance(plan, LayerGroupPlan) or plan.num_layers != stage.num_layers:
                name = self._controls.policy_text
                raise PlanError(f"policy {name} gave {plan} for {stage.num_layers} layers")
            plans.append(plan)
        return self._stages.joined(plans)

    def _view(
        self,
        batch: ScheduleBatch,
        last_step: StepTiming | None,
        num_layers: int,
        layers: tuple[LayerShape, ...],
    ) -> SchedulerView:
        running = self._scheduler.running_batch
        return SchedulerView(
            num_layers=num_layers,
            prompt_lens=tuple(batch.extend_lens),
            prefix_lens=tuple(batch.prefix_lens),
            num_running=len(running.reqs),
            decode_kv_tokens=sum(req.seqlen for req in running.reqs),
            num_waiting=len(self._scheduler.waiting_queue),
            last_step=last_step,
            layers=layers,
        )
