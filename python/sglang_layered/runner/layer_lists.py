"""Layer ranges of a model whose forward loops over all its layers: SGLang cannot cut it into stages.

While a range runs, the stack's list of layers is that range's, the first of them starts from the given rows,
and the final norm hands out what the last one left. Layers and norm are shadowed in the module's attribute
dictionary, so nothing of the model is changed.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from sglang.srt.model_executor.forward_batch_info import ForwardBatch, PPProxyTensors
from torch import nn

from sglang_layered.core.plan import LayerGroup
from sglang_layered.errors import UnsupportedError
from sglang_layered.runner.layer_ranges import Kwargs, LayerRanges

STACK_PARTS = {"embed_tokens", "layers", "norm"}
# Models of this kind whose tokens the tests compare with SGLang's own and Hugging Face's (docs/models.md).
TESTED = frozenset({"Ernie4_5_MoeForCausalLM", "Gemma2ForCausalLM", "Gemma3ForCausalLM"})


class ListRanges(LayerRanges):
    """Layer ranges of a model that is one list of layers, each taking `hidden_states` and `residual`.

    Raises:
        UnsupportedError: the model is not among those that were tested this way.
    """

    def __init__(self, model: nn.Module) -> None:
        stacks = [module for module in model.modules() if vars(module)["_modules"].keys() >= STACK_PARTS]
        if type(model).__name__ not in TESTED or len(stacks) != 1:
            raise UnsupportedError(
                f"--prefill-mode layered cannot serve {type(model).__name__}: its layers cannot be run in"
                " ranges (SGLang has no pipeline parallelism for it); serve it in chunked mode"
            )
        self._model = model
        [self._stack] = stacks
        self._layers = list(self._stack.layers)
        self._signature = inspect.signature(self._layers[0].forward)
        self.num_layers = len(self._layers)

    def _forward(
        self, batch: ForwardBatch, layers: LayerGroup, rows: PPProxyTensors | None, last: bool, kwargs: Kwargs
    ) -> Any:
        entry = None if rows is None else (rows["hidden_states"], rows["residual"])
        if entry is not None:
            kwargs["input_embeds"] = torch.empty_like(entry[0])  # embeds nothing; only its type is read
        stack: list[Any] = self._layers[layers.start : layers.end]
        norm = _Norm(self._stack.norm, None if stack else entry, is_open=last)
        if entry is not None and stack:
            stack[0] = _Resumed(stack[0], self._signature, entry)
        with self._shadowed(layers=stack, norm=norm):
            forward = self._model.forward if last else self._stack.forward
            output = forward(batch.input_ids, batch.positions, batch, **kwargs)
        return output if last else PPProxyTensors(norm.seen)

    @contextmanager
    def _shadowed(self, **parts: Any) -> Iterator[None]:
        attributes = vars(self._stack)
        attributes.update(parts)
        try:
            yield
        finally:
            for name in parts:
                del attributes[name]


class _Resumed:
    """A layer that starts from the given rows, whatever the loop hands it."""

    def __init__(self, layer: nn.Module, signature: inspect.Signature, entry: tuple[Any, Any]) -> None:
        self._layer = layer
        self._signature = signature
        self._entry = entry

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        call = self._signature.bind(*args, **kwargs)
        call.arguments["hidden_states"], call.arguments["residual"] = self._entry
        return self._layer(*call.args, **call.kwargs)


class _Norm:
    """Stands where the final norm stands: normalises if `is_open`, else notes the rows and passes them."""

    def __init__(self, norm: Any, entry: tuple[Any, Any] | None, *, is_open: bool) -> None:
        self._norm = norm
        self._entry = entry
        self._is_open = is_open
        self.seen: dict[str, Any] = {}

    def __call__(self, hidden_states: torch.Tensor, residual: torch.Tensor | None = None) -> Any:
        if self._entry is not None:
            hidden_states, residual = self._entry
        if self._is_open:
            return self._norm(hidden_states) if residual is None else self._norm(hidden_states, residual)
        self.seen = {"hidden_states": hidden_states, "residual": residual}
        return hidden_states, residual
