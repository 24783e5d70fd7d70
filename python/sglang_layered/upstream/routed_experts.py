"""Expert ids that requests ask for (`--enable-return-routed-experts`), gathered over the groups of a cohort.

SGLang notes the ids of one forward in a buffer by row and layer, copies all layers of it to the host when the
forward ends, and keeps them there by KV slot. A layered step has two kinds of rows, and its prompt rows pass
few layers: they get a buffer of their own, which goes with their parked activations from group to group.
Upstream: srt/state_capturer/.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from sglang.srt.model_executor.forward_batch_info import ForwardBatch, PPProxyTensors
from sglang.srt.runtime_context import get_schedule
from sglang.srt.state_capturer.base import TopkCaptureOutput
from sglang.srt.state_capturer.routed_experts import (
    get_global_experts_capturer,
    set_global_experts_capturer,
)

EXPERT_IDS = "layered_expert_ids"  # no model has activations of this name


class ExpertIds:
    """Stands in front of SGLang's capturer, which keeps the decode rows' buffer and what the host has."""

    def __init__(self, stock: Any) -> None:
        self.stock = stock
        self._prompt: torch.Tensor | None = None  # while a group's layers run

    @classmethod
    def install(cls) -> "ExpertIds | None":
        """Put one in SGLang's place, once; None when the server returns no expert ids."""
        capturer = get_global_experts_capturer()
        if capturer is not None and not isinstance(capturer, cls):
            capturer = cls(capturer)
            set_global_experts_capturer(capturer)
        return capturer

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stock, name)

    def of_prompt(self, parked: PPProxyTensors | None, num_rows: int) -> torch.Tensor:
        """The prompt's ids so far, int32 [rows, layers, chosen]: those parked with its rows, or new ones.

        Layers without experts stay 0, as in SGLang's buffer.
        """
        if parked is not None:
            return parked.tensors[EXPERT_IDS]
        buffer = self.stock.device_cache.buffer
        return torch.zeros((num_rows, *buffer.shape[1:]), dtype=buffer.dtype, device=buffer.device)

    @contextmanager
    def rows(self, ids: torch.Tensor) -> Iterator[None]:
        """Layers that run inside have the prompt's rows first and write theirs into `ids`."""
        self._prompt = ids
        try:
            yield
        finally:
            self._prompt = None

    def capture(self, layer_id: int, topk_indices: torch.Tensor) -> None:
        """SGLang's call in every layer with experts."""
        ids, decode = self._prompt, topk_indices
        if ids is not None:
            num_rows = ids.shape[0]
            ids[:, layer_id] = topk_indices[:num_rows]
            decode = topk_indices[num_rows:]
        if decode.shape[0]:
            # A buffer for both kinds would have to be longer than SGLang's, and graphs of decode rows have
            # its address.
            self.stock.capture(layer_id=layer_id, topk_indices=decode)

    def on_forward_end(self, forward_batch: ForwardBatch, **options: Any) -> TopkCaptureOutput | None:
        """SGLang's call at a forward's end: the ids of its decode rows, or of a forward that is all stock."""
        step = getattr(forward_batch, "layered_step", None)
        if step is not None:
            num_prompt, num_decode = step.num_rows
            if not num_decode:
                return None
            forward_batch = replace(forward_batch, out_cache_loc=forward_batch.out_cache_loc[num_prompt:])
        output: TopkCaptureOutput | None = self.stock.on_forward_end(forward_batch=forward_batch, **options)
        if output is not None:
            # SGLang hands out its buffer itself, which the next forward writes while the copy to the host
            # still reads it; on a CPU there is no copy at all.
            output.topk = output.topk.clone()
        return output

    def done(self, prompt: ForwardBatch, ids: torch.Tensor) -> TopkCaptureOutput | None:
        """All layers' ids of a prompt, for its batch's result; without overlap the host has them at once."""
        output = TopkCaptureOutput(prompt.out_cache_loc, ids[..., : self.stock.topk_size], self.host_cache)
        if not get_schedule().disable_overlap_schedule:
            return output
        output.map_device_tensors(torch.Tensor.cpu)
        output.finalize()
        return None


def with_ids(rows: PPProxyTensors, ids: torch.Tensor) -> PPProxyTensors:
    """Parked rows with the ids of their experts."""
    return PPProxyTensors(rows.tensors | {EXPERT_IDS: ids})


def without_ids(rows: PPProxyTensors) -> PPProxyTensors:
    """Parked rows as a model's layers take them."""
    return PPProxyTensors({name: tensor for name, tensor in rows.tensors.items() if name != EXPERT_IDS})
