"""Runs one tick on one pipeline stage: decode rows through all its layers, prompt rows through one group."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from sglang.srt.layers.logits_processor import LogitsProcessorOutput
from sglang.srt.model_executor.forward_batch_info import ForwardBatch, PPProxyTensors
from sglang.srt.model_executor.forward_context import ForwardContext, forward_context
from sglang.srt.model_executor.model_runner import ModelRunnerOutput
from sglang.srt.utils.device_timer import device_timer_ctx

from sglang_layered.core.plan import LayerGroup
from sglang_layered.runner.expert_watch import group_rows
from sglang_layered.runner.hybrid_attention import HybridAttention
from sglang_layered.runner.layer_ranges import PipelineRanges
from sglang_layered.runner.layered_runner import attention_split, plan_attention
from sglang_layered.runner.rows import cut_rows, hybrid_batch, join_rows, num_rows_of

Rows: TypeAlias = PPProxyTensors | None
Left: TypeAlias = PPProxyTensors | LogitsProcessorOutput | None


@dataclass(slots=True)
class StageStep:
    """One tick as a stage sees it.

    `decode_rows` came from the stage before; None on the first. `prompt_rows` are those rows when the prompt
    enters the stage, later what its last group left; None before layer 0. `is_new` tells that no group has
    run with this ForwardBatch of the prompt on this stage: its attention is to be planned.
    """

    decode: ForwardBatch | None
    decode_rows: Rows
    prompt: ForwardBatch | None = None
    group: LayerGroup | None = None
    prompt_rows: Rows = None
    is_new: bool = False


@dataclass(slots=True)
class StageOutput:
    """What a tick leaves: rows for the next stage or, on the last, logits; a prompt's rows between groups."""

    decode: Left
    prompt: Left


class StageRunner:
    """The layers of one pipeline stage.

    Raises:
        UnsupportedError: the model's layers cannot be run in ranges.
    """

    def __init__(self, model_runner: Any) -> None:
        self._model_runner = model_runner
        self._ranges = PipelineRanges(model_runner.model)
        self._prompt_backend = model_runner._get_attention_backend(init_new_workspace=True)
        self._attention = HybridAttention(self._prompt_backend, model_runner.attn_backend)
        self._split = attention_split(model_runner, self._prompt_backend)
        self.layers = LayerGroup(self._ranges.first_layer, self._ranges.num_layers)

    def run(self, step: StageStep) -> StageOutput:
        """Run a tick; without a group the decode rows go as SGLang sends them."""
        if step.group is None or step.prompt is None:
            if step.decode is None:
                return StageOutput(None, None)
            record = self._model_runner.forward(step.decode, pp_proxy_tensors=step.decode_rows)
            return StageOutput(record.logits_output, None)
        rows = replace(step.prompt) if step.decode is None else hybrid_batch(step.prompt, step.decode)
        carrier: Any = rows
        carrier.layered_step = _CarriedTick(self, step, rows)
        output: StageOutput = self._model_runner.forward(carrier).logits_output
        return output

    def run_group(self, step: StageStep, rows: ForwardBatch) -> StageOutput:
        """Run the layers; called inside `ModelRunner.forward`. `rows` is the batch of the group's layers."""
        prompt_batch, group = step.prompt, step.group
        if prompt_batch is None or group is None:
            raise AssertionError("no group to run")
        fresh = prompt_batch if step.is_new else None
        plan_attention(self._model_runner, self._prompt_backend, fresh, step.decode)
        with device_timer_ctx(self._model_runner.device_timer, "extend"):
            return self._run_rows(step, rows, prompt_batch, group)

    def _run_rows(
        self, step: StageStep, rows: ForwardBatch, prompt_batch: ForwardBatch, group: LayerGroup
    ) -> StageOutput:
        prompt = step.prompt_rows
        if prompt is None:
            kwargs = self._model_runner._extend_forward_kwargs(prompt_batch, None)
            kwargs.pop("pp_proxy_tensors", None)
            prompt = self._ranges.run(prompt_batch, 0, 0, None, **kwargs)
        if step.decode is None:
            with self._attend(self._prompt_backend):
                prompt = self._ranges.run(prompt_batch, group.start, group.end, prompt)
            return StageOutput(None, self._leave(prompt_batch, group.end, prompt))
        decode_batch = step.decode
        decode = self._ranges.run(decode_batch, self.layers.start, group.start, step.decode_rows)
        self._model_runner._prepare_eager_forward_batch(rows)
        backend = self._attention.bind(prompt_batch, decode_batch)
        num_rows = group_rows(self._model_runner, num_rows_of(prompt_batch, decode_batch))
        with self._attend(backend), self._split(prompt_batch, decode_batch), num_rows:
            joined = self._ranges.run(rows, group.start, group.end, join_rows(prompt, decode))
        prompt, decode = cut_rows(joined, prompt_batch.input_ids.shape[0])
        if group.end < self.layers.end:
            decode = self._ranges.run(decode_batch, group.end, self.layers.end, decode)
        decode_left = self._leave(decode_batch, self.layers.end, decode)
        return StageOutput(decode_left, self._leave(prompt_batch, group.end, prompt))

    def _leave(self, batch: ForwardBatch, end: int, rows: PPProxyTensors) -> Left:
        if end == self.layers.end and self._ranges.has_head:
            return self._ranges.run(batch, end, end, rows, last=True)
        return rows

    @staticmethod
    def _attend(backend: Any) -> AbstractContextManager[None]:
        return forward_context(ForwardContext(attn_backend=backend))


class _CarriedTick:
    """Rides on a ForwardBatch into `ModelRunner.forward`; see CarriedStep."""

    def __init__(self, runner: StageRunner, step: StageStep, rows: ForwardBatch) -> None:
        self._runner = runner
        self._step = step
        self._rows = rows
        self.num_rows = num_rows_of(step.prompt, step.decode)

    def run(self, model_runner: Any) -> ModelRunnerOutput:
        """Run the tick in place of the stock forward."""
        return ModelRunnerOutput(
            logits_output=self._runner.run_group(self._step, self._rows), can_run_graph=False
        )
