"""What running a range of a model's layers is, whichever way the model lets itself be cut."""

from abc import ABC, abstractmethod
from typing import Any, TypeAlias

from sglang.srt.distributed import tensor_model_parallel_all_reduce
from sglang.srt.model_executor.forward_batch_info import ForwardBatch, PPProxyTensors
from torch import nn

from sglang_layered.core.plan import LayerGroup
from sglang_layered.errors import UnsupportedError

Kwargs: TypeAlias = dict[str, Any]


class LayerRanges(ABC):
    """The layers of one model, any range at a time."""

    num_layers: int
    first_layer = 0
    has_head = True

    def run(
        self,
        batch: ForwardBatch,
        start: int,
        end: int,
        rows: PPProxyTensors | None,
        *,
        last: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Run layers [start, end) on `rows`; None stands for the embedded tokens of `batch`.

        Returns:
            The rows after layer end - 1 as PPProxyTensors or, if `last`, their logits.
        """
        output = self._forward(batch, LayerGroup(start, end), rows, last, kwargs)
        return output if last else with_pending_sum(output)

    @abstractmethod
    def _forward(
        self, batch: ForwardBatch, layers: LayerGroup, rows: PPProxyTensors | None, last: bool, kwargs: Kwargs
    ) -> Any:
        """The model's forward over these layers."""


def with_pending_sum(rows: PPProxyTensors) -> PPProxyTensors:
    """Rows whose last layer left its sum over tensor ranks to the next layer's norm, with the sum done.

    Upstream marks such rows (srt/layers/communicator.py); the mark is lost when rows are joined or cut, and
    of the models only srt/models/qwen2_moe.py sums at the end of a pipeline stage itself.
    """
    hidden = rows.tensors.get("hidden_states")
    if getattr(hidden, "_sglang_needs_allreduce_fusion", False):
        rows.tensors["hidden_states"] = tensor_model_parallel_all_reduce(hidden)
    return rows


def unfit(model: nn.Module, why: str) -> UnsupportedError:
    """The refusal of a model whose layers cannot be run in ranges."""
    return UnsupportedError(
        f"--prefill-mode layered cannot serve {type(model).__name__}: its layers cannot be run in ranges:"
        f" {why}; serve it in chunked mode"
    )
