"""CPU reference of a rank's experts under expert parallelism: rows routed to other ranks' experts add nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Experts = Callable[..., torch.Tensor]


def skip_other_ranks(experts: Experts) -> Experts:
    """SGLang's torch experts with the entries of other ranks left out.

    Upstream (srt/layers/moe/fused_moe_native.py) gives an expert of another rank the index -1 and then takes
    it for an index. Here such an entry computes expert 0 with weight 0, so its share of the sum is 0:

        y_t = sum over j with id_tj >= 0 of w_tj * expert_{id_tj}(x_t)
    """

    def of_this_rank(
        layer: Any, x: torch.Tensor, topk_output: Any, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        elsewhere = topk_output.topk_ids < 0
        own = topk_output._replace(
            topk_ids=topk_output.topk_ids.masked_fill(elsewhere, 0),
            topk_weights=topk_output.topk_weights.masked_fill(elsewhere, 0.0),
        )
        return experts(layer, x, own, *args, **kwargs)

    return of_this_rank
