"""Runs a layered step: decode rows through all layers, prompt rows through one layer group."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

import torch
from sglang.srt.layers.logits_processor import LogitsProcessorOutput
from sglang.srt.model_executor.forward_batch_info import ForwardBatch, PPProxyTensors
from sglang.srt.model_executor.model_runner import ModelRunnerOutput
from sglang.srt.utils.device_timer import device_timer_ctx

from sglang_layered.core.plan import LayerGroup
from sglang_layered.models.refused import has_indexer
from sglang_layered.runner.decode_graphs.paths import DecodePaths
from sglang_layered.runner.flashinfer_group import make_group_attention
from sglang_layered.runner.group_graphs import GroupGraphs, make_group_graphs
from sglang_layered.runner.rows import cut_rows, hybrid_batch, join_rows, num_rows_of
from sglang_layered.upstream.aux_states import KeptEmbeds
from sglang_layered.upstream.graph_attention import PlannedDecode
from sglang_layered.upstream.lora import Adapters
from sglang_layered.upstream.models import LayerCalls, attend
from sglang_layered.upstream.probe import ranges_of, stage_ranges, with_kept_rows
from sglang_layered.upstream.releases import forwarding
from sglang_layered.upstream.routed_experts import ExpertIds, with_ids, without_ids
from sglang_layered.upstream.runner import (
    Carried,
    attention_split,
    layer_with_scratch,
    new_prompt_backend,
    plan_attention,
    pool_is_read_in_plans,
    preparation_of,
    share_scratch,
)

RowsOrLogits: TypeAlias = PPProxyTensors | LogitsProcessorOutput | None


@dataclass(slots=True)
class GroupStep:
    """One step as the runner sees it. `parked` holds the prompt's activations between its groups.

    `is_new` tells that no group has run with this ForwardBatch of the prompt: its attention is to be planned.
    Inside `loads()` layers wait for the prompt's KV that comes back from host memory. `decode_rows` came from
    the pipeline stage before, as `parked` did where the prompt enters a stage; None on the first.
    `expert_ids` [prompt rows, layers, chosen] takes the ids that requests want returned; None: nobody does.
    `images` are the prompt's that have not passed their encoder, a list for each step that it takes.
    """

    prompt: ForwardBatch
    decode: ForwardBatch | None
    group: LayerGroup
    parked: PPProxyTensors | None
    is_new: bool
    loads: Callable[[], AbstractContextManager[None]] = nullcontext
    decode_rows: PPProxyTensors | None = None
    expert_ids: torch.Tensor | None = None
    images: Sequence[Sequence[Any]] = ()


@dataclass(slots=True)
class StepOutput:
    """What a step leaves: logits of the decode rows, and the prompt's parked rows or its logits.

    On a pipeline stage rows for the next stage stand in the place of logits.
    The records are what SGLang noted of the forward that the rows ran in; a fused step has one for both.
    After `read_done` the step reads the request pool no more; None: it may until its end.
    """

    decode_logits: LogitsProcessorOutput | None
    prompt_logits: LogitsProcessorOutput | None
    parked: PPProxyTensors | None
    decode_record: ModelRunnerOutput | None = None
    prompt_record: ModelRunnerOutput | None = None
    read_done: Any = None


@dataclass(slots=True)
class StageOutput:
    """What a tick leaves: rows for the next stage or, on the last, logits; a prompt's rows between groups."""

    decode: RowsOrLogits
    prompt: RowsOrLogits


class GroupRunner(ABC):
    """Runs steps on the layers of one SGLang ModelRunner: all of the model's, or a pipeline stage's.

    Raises:
        UnsupportedError: the model's layers cannot be run in ranges.
    """

    def __init__(self, model_runner: Any, calls: LayerCalls) -> None:
        self._model_runner = model_runner
        self._calls = calls
        self._adapters = Adapters.of(model_runner)
        self._watch = getattr(model_runner, "layered_expert_watch", None)
        self._ids = ExpertIds.install()
        self._prompt_backend = new_prompt_backend(model_runner)
        self._planned: ForwardBatch | None = None  # the prompt that this backend has planned
        self._attention = make_group_attention(model_runner, self._prompt_backend)
        self._split = attention_split(model_runner, self._prompt_backend)
        self._prepare = preparation_of(model_runner)
        self.group_graphs: GroupGraphs | None = None
        self._reads_in_plans = pool_is_read_in_plans(model_runner, self._prompt_backend)
        self._read_done: Any = None

    def decode_alone(self, batch: ForwardBatch, rows: PPProxyTensors | None = None) -> ModelRunnerOutput:
        """Run the decode rows as SGLang does, with its full graph where it has one."""
        if self._adapters is not None:
            self._adapters.use(batch)
        return self._model_runner.forward(batch, pp_proxy_tensors=rows)

    def forward(self, step: GroupStep) -> ModelRunnerOutput:
        """Run a step in one forward: in the group's layers prompt and decode rows share the weights read."""
        rows: ForwardBatch | None = None
        if step.decode is None:
            rows = replace(step.prompt)
        elif self.group_graphs is not None:
            rows = self.group_graphs.load(step.prompt, step.decode)
        if rows is None:
            rows = hybrid_batch(step.prompt, step.decode)
            if self._adapters is not None:
                self._adapters.join(rows, step.prompt, step.decode)
        Carried(rows, partial(self.run_layers, step, rows), num_rows_of(step.prompt, step.decode))
        return self._model_runner.forward(rows)

    def run_layers(self, step: GroupStep, rows: ForwardBatch) -> StepOutput:
        """Run the layers; called inside `ModelRunner.forward`. `rows` is the batch of the group's layers."""
        calls, end, decode = self._calls, step.group.end, None
        fresh, graphs = step.prompt if step.is_new else None, self.group_graphs
        if fresh is None and step.prompt is not self._planned:  # another one has overtaken it
            self._prompt_backend.init_forward_metadata(step.prompt)
        self._planned = step.prompt
        by_graphs = graphs is not None and graphs.loaded is rows
        plan_attention(self._model_runner, self._prompt_backend, fresh, None if by_graphs else step.decode)
        noting: AbstractContextManager[None] = nullcontext()
        if self._ids is not None and step.expert_ids is not None:
            noting = self._ids.rows(step.expert_ids)
        with device_timer_ctx(self._model_runner.device_timer, "extend"):
            prompt = calls.embed(step.prompt) if step.parked is None else step.parked
            if step.decode is None:
                with attend(self._prompt_backend, step.prompt), step.loads(), noting:
                    prompt = calls.layers(step.prompt, step.group.start, end, prompt)
            elif by_graphs:
                prompt, decode = self._by_graphs(step, prompt)
            else:
                prompt, decode = self._together(step, rows, prompt, noting)
            if end == calls.num_layers:
                return StepOutput(decode, calls.head(step.prompt, prompt, end), None)
            return StepOutput(decode, None, prompt)

    def _together(
        self,
        step: GroupStep,
        rows: ForwardBatch,
        prompt: PPProxyTensors,
        noting: AbstractContextManager[None],
    ) -> tuple[PPProxyTensors, Any]:
        """The prompt's rows after the group, and what comes of the decode rows in all layers."""
        below, above = self._around(step)
        backend = self._attention.bind(step.prompt, step.decode)
        if self._reads_in_plans:
            self._read_done = torch.cuda.current_stream().record_event()
        decode = below(step.group.start)
        self._prepare(rows)
        attending = attend(backend, rows)
        watching = nullcontext()
        if self._watch is not None:
            watching = self._watch.rows(*num_rows_of(step.prompt, step.decode))
        with attending, self._split(step.prompt, step.decode), watching, step.loads(), noting:
            joined = self._calls.layers(rows, step.group.start, step.group.end, join_rows(prompt, decode))
        prompt, decode = cut_rows(joined, step.prompt.input_ids.shape[0])
        return prompt, above(decode, step.group.end)

    def _by_graphs(self, step: GroupStep, prompt: PPProxyTensors) -> tuple[PPProxyTensors, Any]:
        """As `_together`, where the group's rows are in the memory of its graphs."""
        raise NotImplementedError

    @abstractmethod
    def _around(self, step: GroupStep) -> tuple[Callable[[int], PPProxyTensors], Callable[..., Any]]:
        """What runs the decode rows up to a layer, and from one to their end."""


class LayeredRunner(GroupRunner):
    """Runs layered steps on one SGLang ModelRunner, of a model with `num_layers` layers."""

    def __init__(self, model_runner: Any) -> None:
        ranges = with_kept_rows(model_runner, ranges_of(model_runner))
        super().__init__(model_runner, LayerCalls(model_runner, ranges))
        self.num_layers = self._calls.num_layers
        self.keeps_embeds = isinstance(
            ranges, KeptEmbeds
        )  # which the prompt's rows have and drafts' have not
        self.decode_paths = DecodePaths(model_runner, self._calls)
        self._capture_groups()

    @property
    def verifies_apart(self) -> bool:
        """True where SGLang's CUDA graphs verify drafts, whole, or an indexer chooses what such rows see."""
        return self.decode_paths.stock is not None or has_indexer(self._model_runner.model_config)

    @property
    def not_concurrent(self) -> str | None:
        """Why prompt and decode rows cannot run at the same time, or None."""
        if share_scratch(self._prompt_backend, self._model_runner.attn_backend):
            return "this attention backend has one workspace for the whole process"
        layer = layer_with_scratch(self._model_runner.model)
        return None if layer is None else f"the kernels of {layer} have one workspace for all calls"

    def fused(self, step: GroupStep) -> StepOutput:
        """Run a step in one forward."""
        if self.decode_paths.stock is not self._model_runner.decode_cuda_graph_runner:
            self.decode_paths.renew()
            self._capture_groups()
        if self._ids is not None:
            ids = self._ids.of_prompt(step.parked, step.prompt.input_ids.shape[0])
            parked = None if step.parked is None else without_ids(step.parked)
            step = replace(step, parked=parked, expert_ids=ids)
        record = self.forward(step)
        # In a cycle of the two, parked rows would stay in device memory until Python's collector comes by.
        output: StepOutput
        output, record.logits_output = record.logits_output, None
        output.decode_record = output.prompt_record = record
        output.read_done, self._read_done = self._read_done, None
        if self._ids is not None and step.expert_ids is not None:
            if output.parked is None:
                done = self._ids.done(step.prompt, step.expert_ids)
                output.prompt_record = replace(record, routed_experts_output=done)
            else:
                output.parked = with_ids(output.parked, step.expert_ids)
        return output

    def embed(self, step: GroupStep) -> PPProxyTensors | None:
        """Run the encoder on the next images; with the last of them: the rows before layer 0, else None."""
        rows = replace(step.prompt)
        Carried(rows, partial(self._embed, step), num_rows_of(step.prompt, None))
        record = self._model_runner.forward(rows)
        parked: PPProxyTensors | None
        parked, record.logits_output = record.logits_output, None
        if self._ids is None or parked is None:
            return parked
        return with_ids(parked, self._ids.of_prompt(None, step.prompt.input_ids.shape[0]))

    def _embed(self, step: GroupStep) -> PPProxyTensors | None:
        if len(step.images) > 1:
            forwarding.encode(self._model_runner, step.images[0])
            return None
        # The groups take the attention's plan for made once the prompt has a ForwardBatch.
        plan_attention(self._model_runner, self._prompt_backend, step.prompt, None)
        self._planned = step.prompt
        with device_timer_ctx(self._model_runner.device_timer, "extend"):
            return self._calls.embed(step.prompt)

    def _capture_groups(self) -> None:
        self.group_graphs = None  # its memory is free before new graphs take theirs
        self.group_graphs = make_group_graphs(self._model_runner, self._calls, self._attention)

    def _by_graphs(self, step: GroupStep, prompt: PPProxyTensors) -> tuple[PPProxyTensors, Any]:
        """As `_together`, without what `group_obstacle` rules out.

        Attention of decode rows is planned once, for layers in the group and beside it, where that can be.
        """
        graphs, path, end = self.group_graphs, self.decode_paths.of(step.decode), step.group.end
        if graphs is None:
            raise AssertionError("the group has no graphs")
        planned = path.planned(step.group)
        if planned is None or planned.batch.batch_size > graphs.decode_room:
            plan_attention(self._model_runner, self._prompt_backend, None, step.decode)
            planned = PlannedDecode(self._model_runner.attn_backend, step.decode)
        if self._reads_in_plans:
            self._read_done = torch.cuda.current_stream().record_event()
        decode = path.below(step.group.start)
        with attend(self._attention, step.prompt):
            prompt, decode = graphs.run(step.group, step.prompt, planned, prompt, decode)
        return prompt, path.above(decode, end)

    def _around(self, step: GroupStep) -> tuple[Callable[[int], PPProxyTensors], Callable[..., Any]]:
        path = self.decode_paths.of(step.decode)
        return path.below, path.above


class StageRunner(GroupRunner):
    """Runs ticks on one pipeline stage: decode rows through all its layers, prompt rows through one group."""

    def __init__(self, model_runner: Any) -> None:
        super().__init__(model_runner, LayerCalls(model_runner, stage_ranges(model_runner)))

    def run(self, step: GroupStep) -> StageOutput:
        """Run a tick in which the stage has a group."""
        left: StepOutput = self.forward(step).logits_output
        return StageOutput(left.decode_logits, left.prompt_logits if left.parked is None else left.parked)

    def _around(self, step: GroupStep) -> tuple[Callable[[int], PPProxyTensors], Callable[..., Any]]:
        below = partial(self._calls.below, step.decode, rows=step.decode_rows)
        return below, partial(self._calls.head, step.decode)
