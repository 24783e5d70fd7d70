"""Runs a layered step: decode rows through all layers, prompt rows through one layer group."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

from sglang.srt.layers.logits_processor import LogitsProcessorOutput
from sglang.srt.model_executor.forward_batch_info import ForwardBatch, PPProxyTensors
from sglang.srt.model_executor.forward_context import ForwardContext, forward_context
from sglang.srt.model_executor.model_runner import ModelRunnerOutput
from sglang.srt.utils.device_timer import device_timer_ctx

from sglang_layered.core.plan import LayerGroup
from sglang_layered.runner.decode_graphs.paths import DecodePaths
from sglang_layered.runner.flashinfer_group import make_group_attention
from sglang_layered.runner.layer_ranges import LayerCalls
from sglang_layered.runner.rows import cut_rows, hybrid_batch, join_rows, num_rows_of
from sglang_layered.runner.split_attention import SplitAttention


@dataclass(slots=True)
class GroupStep:
    """One step as the runner sees it. `parked` holds the prompt's activations between its groups.

    `is_new` tells that no group has run with this ForwardBatch of the prompt: its attention is to be planned.
    """

    prompt: ForwardBatch
    decode: ForwardBatch | None
    group: LayerGroup
    parked: PPProxyTensors | None
    is_new: bool

    @property
    def num_rows(self) -> tuple[int, int]:
        """Prompt rows and decode rows of the group's layers."""
        return num_rows_of(self.prompt, self.decode)


@dataclass(slots=True)
class StepOutput:
    """What a step leaves: logits of the decode rows, and the prompt's parked rows or its logits.

    The records are what SGLang noted of the forward that the rows ran in; a fused step has one for both.
    """

    decode_logits: LogitsProcessorOutput | None
    prompt_logits: LogitsProcessorOutput | None
    parked: PPProxyTensors | None
    decode_record: ModelRunnerOutput | None = None
    prompt_record: ModelRunnerOutput | None = None


class CarriedStep:
    """Rides on a ForwardBatch into `ModelRunner.forward`; the seam in `_forward_raw` runs it there.

    So the expert recorder, step spans, canary and dumper of `ModelRunner.forward` come as in stock.
    """

    def __init__(self, runner: LayeredRunner, step: GroupStep, rows: ForwardBatch) -> None:
        self._runner = runner
        self._step = step
        self._rows = rows
        self.num_rows = step.num_rows

    def run(self, model_runner: Any) -> ModelRunnerOutput:
        """Run the step in place of the stock forward."""
        output = self._runner.run_layers(self._step, self._rows)
        return ModelRunnerOutput(logits_output=output, can_run_graph=False)


class LayeredRunner:
    """Runs layered steps on one SGLang ModelRunner.

    Raises:
        UnsupportedError: the model's layers cannot be run in ranges.
    """

    def __init__(self, model_runner: Any) -> None:
        self._model_runner = model_runner
        self._calls = LayerCalls(model_runner)
        self._watch = getattr(model_runner, "layered_expert_watch", None)
        self._prompt_backend = model_runner._get_attention_backend(init_new_workspace=True)
        self._attention = make_group_attention(model_runner, self._prompt_backend)
        self._split = attention_split(model_runner, self._prompt_backend)
        self.decode_paths = DecodePaths(model_runner, self._calls)

    @property
    def num_layers(self) -> int:
        """Layers of the model."""
        return self._calls.num_layers

    def fused(self, step: GroupStep) -> StepOutput:
        """Run a step in one forward: in the group's layers prompt and decode rows share the weights read."""
        rows = replace(step.prompt) if step.decode is None else hybrid_batch(step.prompt, step.decode)
        carrier: Any = rows
        carrier.layered_step = CarriedStep(self, step, rows)
        record = self._model_runner.forward(carrier)
        output: StepOutput = record.logits_output
        output.decode_record = output.prompt_record = record
        return output

    def decode_alone(self, batch: ForwardBatch) -> ModelRunnerOutput:
        """Run the decode rows as SGLang does, with its full graph where it has one."""
        return self._model_runner.forward(batch)

    def run_layers(self, step: GroupStep, rows: ForwardBatch) -> StepOutput:
        """Run the layers; called inside `ModelRunner.forward`. `rows` is the batch of the group's layers."""
        fresh = step.prompt if step.is_new else None
        plan_attention(self._model_runner, self._prompt_backend, fresh, step.decode)
        with device_timer_ctx(self._model_runner.device_timer, "extend"):
            prompt = self._calls.embed(step.prompt) if step.parked is None else step.parked
            if step.decode is None:
                with self._attend(self._prompt_backend):
                    prompt = self._calls.layers(step.prompt, step.group.start, step.group.end, prompt)
                decode_logits = None
            else:
                prompt, decode_logits = self._hybrid(step, rows, prompt)
            end = self._calls.num_layers
            if step.group.end == end:
                return StepOutput(decode_logits, self._calls.head(step.prompt, prompt, end), None)
            return StepOutput(decode_logits, None, prompt)

    def _hybrid(
        self, step: GroupStep, hybrid: ForwardBatch, prompt: PPProxyTensors
    ) -> tuple[PPProxyTensors, LogitsProcessorOutput]:
        group, decode_batch = step.group, step.decode
        path = self.decode_paths.of(decode_batch)
        decode = path.below(group.start)
        self._model_runner._prepare_eager_forward_batch(hybrid)
        backend = self._attention.bind(step.prompt, decode_batch)
        rows = nullcontext() if self._watch is None else self._watch.rows(*step.num_rows)
        with self._attend(backend), self._split(step.prompt, decode_batch), rows:
            joined = self._calls.layers(hybrid, group.start, group.end, join_rows(prompt, decode))
        prompt, decode = cut_rows(joined, step.prompt.input_ids.shape[0])
        return prompt, path.above(decode, group.end)

    @staticmethod
    def _attend(backend: Any) -> AbstractContextManager[None]:
        return forward_context(ForwardContext(attn_backend=backend))


def plan_attention(
    model_runner: Any, prompt_backend: Any, prompt: ForwardBatch | None, decode: ForwardBatch | None
) -> None:
    """Plan a prompt before its first group, on the backend that keeps the plan; decode rows every step."""
    for batch, backend in ((prompt, prompt_backend), (decode, model_runner.attn_backend)):
        if batch is not None:
            model_runner._prepare_eager_forward_batch(batch)
            backend.init_forward_metadata(batch)


def attention_split(
    model_runner: Any, prompt_backend: Any
) -> Callable[[ForwardBatch, ForwardBatch], AbstractContextManager[None]]:
    """What cuts a group's rows in the attention modules, where the attention backend cannot do it."""
    if model_runner.use_mla_backend:
        return SplitAttention(model_runner.model, prompt_backend, model_runner.attn_backend).bound
    return lambda prompt, decode: nullcontext()
