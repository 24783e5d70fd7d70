"""What the loop of one stage and the loop over pipeline stages share: owners, subscribers, room, results."""

import logging
from typing import Any

from sglang.srt.managers.schedule_batch import ScheduleBatch

from sglang_layered.config import LayeredConfig
from sglang_layered.core.events import DropReason
from sglang_layered.core.pacing import ModelSizes
from sglang_layered.core.plan import LayerGroupPlan
from sglang_layered.core.stages import PipelineStages
from sglang_layered.core.view import SchedulerView, StepTiming
from sglang_layered.errors import PlanError
from sglang_layered.models.layer_shapes import served_layer_shapes
from sglang_layered.models.quantization import DEPENDS, sharing_of
from sglang_layered.scheduler.cohorts import CohortSet
from sglang_layered.scheduler.control import Controls
from sglang_layered.scheduler.invariants import InvariantChecker
from sglang_layered.scheduler.loads import count_cohorts
from sglang_layered.scheduler.metrics import LoopMetrics
from sglang_layered.scheduler.report import Reporter, Spans
from sglang_layered.scheduler.results import LaunchedStep
from sglang_layered.scheduler.stream import Admitted, EventStream, ResultsDue
from sglang_layered.upstream.cache import guard_cache
from sglang_layered.upstream.lora import EndsByOutputs
from sglang_layered.upstream.recurrent import keep_right_states
from sglang_layered.upstream.releases import arguments, serving
from sglang_layered.upstream.room import end_aborted_that_wait, last_one_has_no_room, make_room_for_chunk
from sglang_layered.upstream.speculation import num_draft_layers

logger = logging.getLogger(__name__)

DENSE = (
    "Layered prefill on a dense model saves no expert loads: expect steadier tokens at a later first token"
    " (docs/models.md); a higher --layered-group-tokens gives fewer groups and an earlier first token"
)


class BaseLoop:
    """What the loop without pipeline stages and the one over stages have in common.

    A subclass makes what runs steps (`prepare`), chooses batches and launches them.
    """

    def __init__(self, scheduler: Any, config: LayeredConfig) -> None:
        self.scheduler = scheduler
        self.stream = EventStream()
        self.layers = served_layer_shapes(scheduler.model_config)
        self.stages = self.prepare(config)
        # The policy plans each stage by itself, so the smallest stage limits the number of groups.
        depth = min(stage.num_layers for stage in self.stages.layers)
        self.controls = Controls(scheduler, config, depth, self.stream)
        self.cohorts = CohortSet(scheduler, self.stages, self.stream)
        self.report = Reporter.of(scheduler, config)
        self._checker = InvariantChecker(scheduler, self.cohorts, config.layered_check_invariants)
        guard_cache(scheduler)
        keep_right_states(scheduler)
        EndsByOutputs.install(scheduler)
        serving.refuse_requests(scheduler)
        count_cohorts(scheduler)
        self._first_waiting: Any = None
        self._has_other_load = False  # than is published
        self.subscribe(config)

    @classmethod
    def start(cls, scheduler: Any) -> None:
        """Attach a loop to the scheduler and run it until shutdown."""
        loop = cls(scheduler, LayeredConfig.from_server_args(scheduler.server_args))
        scheduler.layered_loop = loop
        logger.info("Layered prefill: layers %s, policy %s", loop.stages.cuts, loop.controls.policy_text)
        loop.warn()
        loop.report.started(loop.controls.policy_text, loop.controls.admission.most_tokens, loop.sizes)
        try:
            loop.run()
        finally:
            loop.close()

    def warn(self) -> None:
        """Log what a user should know of this model."""
        if self.layers and not any(layer.num_experts for layer in self.layers):
            logger.warning(DENSE)
        sharing = sharing_of(self.scheduler.model_config)
        if sharing is not None:
            logger.warning(DEPENDS, sharing.text)

    def prepare(self, config: LayeredConfig) -> PipelineStages:
        """Make what runs steps; gives how the layers lie on pipeline stages."""
        raise NotImplementedError

    def run(self) -> None:
        """Serve until the scheduler is told to exit."""
        raise NotImplementedError

    def subscribe(self, config: LayeredConfig) -> None:
        """Let everybody hear the loop."""
        observer = getattr(self.scheduler, "layered_observer", None)
        if observer is not None:
            self.stream.add(observer)
        self.stream.add(LoopMetrics(self.scheduler, config, lambda: self.cohorts.inflight))
        self.stream.add(Spans())
        self.stream.add(self.report)
        self.is_heard = bool(self.report.handlers())

    def close(self) -> None:
        """The server ends."""
        self.report.close()

    @property
    def sizes(self) -> ModelSizes:
        """What of the model decides how step times grow with their load."""
        # SGLang's torch attention computes rows for cached tokens too.
        is_padded = arguments.resolved(self.scheduler.server_args).attention_backend == "torch_native"
        num_drafts = num_draft_layers(self.scheduler)
        return ModelSizes.of(self.stages.num_layers, self.layers, is_padded, num_drafts)

    def settle(self) -> None:
        """Process results that are pending; over stages they come when they come."""

    def plan(self, batch: ScheduleBatch, last_step: StepTiming | None) -> LayerGroupPlan:
        """The layer groups of these prompts; the policy plans each stage as a model of its own.

        Raises:
            PlanError: the policy gave no plan for this model. Whatever else the policy raises passes.
        """
        running, policy, plans = self.scheduler.running_batch, self.controls.policy, []
        for stage in self.stages.layers:
            view = SchedulerView(
                num_layers=stage.num_layers,
                prompt_lens=tuple(batch.extend_lens),
                prefix_lens=tuple(batch.prefix_lens),
                num_running=len(running.reqs),
                decode_kv_tokens=sum(req.seqlen for req in running.reqs),
                num_waiting=len(self.scheduler.waiting_queue),
                last_step=last_step,
                layers=self.layers[stage.start : stage.end],
            )
            plan = policy.plan(view)
            if not isinstance(plan, LayerGroupPlan) or plan.num_layers != stage.num_layers:
                name = self.controls.policy_text
                raise PlanError(f"policy {name} gave {plan} for {stage.num_layers} layers")
            plans.append(plan)
        return self.stages.joined(plans)

    def admit(self, batch: ScheduleBatch, plan: LayerGroupPlan) -> None:
        """A prompt batch that SGLang chose becomes a cohort."""
        self._has_other_load = True
        self.stream.emit(Admitted(self.cohorts.admit(batch, plan)))

    def drop(self, reason: DropReason) -> None:
        """All prompts in flight wait again."""
        self.settle()
        self.cohorts.drop_all(reason)

    def make_room(self, running: ScheduleBatch) -> None:
        """Room for the last request that decodes: SGLang would abort it, and a cohort holds slots."""
        if self.cohorts.inflight and last_one_has_no_room(running):
            self.settle()
            if last_one_has_no_room(running):
                self.drop(DropReason.KV_POOL_FULL)

    def look_at_queue_again(self) -> None:
        """The first prompt that waits is another one: it may fit where the one before did not.

        SGLang marks a batch full for a prompt that does not fit, and keeps the mark when that one gives up.
        """
        end_aborted_that_wait(self.scheduler)
        queue = self.scheduler.waiting_queue
        first = queue[0] if queue else None
        if first is not self._first_waiting:
            self._first_waiting = first
            self.cohorts.room_came_free()

    def make_room_for_chunk(self) -> None:
        """Room for the next chunk of a long prompt, or it waits again."""
        if make_room_for_chunk(self.scheduler, self.settle):
            self.cohorts.room_came_free()

    def hand_over(self, step: LaunchedStep) -> None:
        """SGLang processes the results of a step.

        It publishes its load with those of a prompt, where its last batch may still be the one before, and
        then in every 15th decode step (`--load-snapshot-publish-interval`): till then a server that was idle
        would pass for idle. So the load is published a step later as well.
        """
        self.stream.emit(ResultsDue(step))
        for outcome in step.outcomes:
            self.scheduler.process_batch_result(outcome.batch_at_launch, outcome.result)
        if self._has_other_load:
            self.scheduler.publish_load_snapshot(force=True)
        self._has_other_load = step.finished is not None or step.kind == "prefill"
