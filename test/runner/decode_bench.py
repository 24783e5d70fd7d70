"""Real decode rows of a stepped scheduler, and the model around them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from sglang.srt.model_executor.forward_batch_info import ForwardBatch, PPProxyTensors
from sglang.srt.model_executor.forward_context import ForwardContext, forward_context

from harness import SteppedScheduler
from prompts import prompt
from sglang_layered.runner.decode_graphs.graphs import LayeredDecodeGraphs
from sglang_layered.upstream.models import LayerCalls
from sglang_layered.upstream.probe import ranges_of


class Bench:
    """The model with real decode rows, between two steps of the scheduler."""

    def __init__(self, model_runner: Any, decode: ForwardBatch) -> None:
        self.model_runner = model_runner
        self.calls = LayerCalls(model_runner, ranges_of(model_runner))
        self.decode = decode

    def rows(self, num_rows: int) -> ForwardBatch:
        """A decode batch of the first rows."""
        names = ("input_ids", "positions", "req_pool_indices", "seq_lens", "seq_lens_cpu", "out_cache_loc")
        cut = {name: getattr(self.decode, name) for name in names}
        cut = {name: None if tensor is None else tensor[:num_rows] for name, tensor in cut.items()}
        return replace(self.decode, batch_size=num_rows, orig_seq_lens=None, **cut)

    @contextmanager
    def planned(self, batch: ForwardBatch) -> Iterator[None]:
        """The forward context of an eager decode step."""
        backend = self.model_runner.attn_backend
        backend.init_forward_metadata(batch)
        with torch.no_grad(), forward_context(ForwardContext(attn_backend=backend)):
            yield

    def whole(self, batch: ForwardBatch) -> torch.Tensor:
        """Oracle: logits of SGLang's own forward through all layers."""
        with self.planned(batch):
            output = self.model_runner.model.forward(batch.input_ids, batch.positions, batch)
        return output.next_token_logits.clone()

    def around(self, graphs: LayeredDecodeGraphs, batch: ForwardBatch, start: int, end: int) -> torch.Tensor:
        """Logits by graphs below `start` and above `end`, eagerly between."""
        with self.planned(batch):
            path = graphs.load(batch)
            below = path.below(start).tensors
            rows = {key: None if value is None else value.clone() for key, value in below.items()}
            between = self.calls.layers(batch, start, end, PPProxyTensors(rows))
            return path.above(between, end).next_token_logits


def caught_decode(stepped: SteppedScheduler, num_rows: int) -> ForwardBatch:
    """The decode batch of requests of different lengths beside a cohort; its step has run."""
    for seed in range(num_rows):
        stepped.send(prompt(3 + 9 * seed, 300 + seed), 12)
    stepped.step_until(lambda: stepped.scheduler.running_batch.batch_size() == num_rows)
    stepped.step()
    stepped.send(prompt(200, 310), 2)
    execution, caught = stepped.loop._execution, []
    run = execution.run

    def catch(step: Any, strategy: str | None) -> Any:
        caught.append(step.decode)
        return run(step, strategy)

    execution.run = catch
    try:
        stepped.step()
    finally:
        del execution.run
    return caught[0]
