"""SGLang 0.5.23's layers: their residual lies on the batch, and each knows its neighbour when it is made.

Upstream: srt/layers/layer_boundary/.
"""

from typing import Any

import torch
from sglang.srt.model_executor.forward_batch_info import ForwardBatch

MISSING = (
    "--prefill-mode layered cannot run layers in ranges on SGLang 0.5.23 yet: a layer leaves its residual on"
    " the batch and its sum to the neighbour that it was made beside; use SGLang 0.5.17"
)


def refuse_uncut_layers() -> None:
    """No range of these layers has been compared with the whole model.

    Raises:
        NotImplementedError: always.
    """
    raise NotImplementedError(MISSING)


def give_rows(module: Any, rows: torch.Tensor, batch: ForwardBatch) -> None:
    """Let an attention module that computes its latent inputs itself do so for these rows."""
    raise NotImplementedError(MISSING)
