"""How the counters lie in memory, and what a reader gets of them. Knows neither kernels nor streams."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from sglang_layered.errors import KernelError

# Columns of a layer's totals, in this order. `stray_ids` are ids that no expert has.
TOTALS = (
    "num_calls",
    "num_prompt_calls",
    "num_decode_calls",
    "prompt_experts",
    "decode_experts",
    "union_experts",
    "stray_ids",
)
NUM_TOTALS = 8  # one more than is used: every layer's row is aligned to 16 bytes


class LayerCounters(NamedTuple):
    """One layer's counters on the device; counting functions add to them in place."""

    tokens: torch.Tensor  # int64 [2, num_experts]: row 0 counts the ids of prompt rows, row 1 of decode rows
    totals: torch.Tensor  # int64 [NUM_TOTALS], columns as in TOTALS
    scratch: torch.Tensor  # int32, zero between calls, shared by all layers; see the counting function


@dataclass(frozen=True, eq=False)
class ExpertTraffic:
    """What a counter had counted when it was read; sums over all calls since its last reset.

    Arrays are int64 and read-only, [num_layers] or [num_layers, num_experts]. A call counts as a prompt call
    (decode call) when at least one id of its prompt (decode) rows counted. `*_experts` are sums over calls
    of the number of distinct experts: divide by the number of calls to get experts activated per step.
    `*_tokens` count ids, so a row that names an expert twice counts twice.
    """

    num_calls: NDArray[np.int64]
    num_prompt_calls: NDArray[np.int64]
    num_decode_calls: NDArray[np.int64]
    prompt_experts: NDArray[np.int64]
    decode_experts: NDArray[np.int64]
    union_experts: NDArray[np.int64]
    prompt_tokens: NDArray[np.int64]
    decode_tokens: NDArray[np.int64]


def read_counters(tokens: torch.Tensor, totals: torch.Tensor) -> ExpertTraffic:
    """Copy the counters of all layers to the host.

    Args:
        tokens: int64 [num_layers, 2, num_experts].
        totals: int64 [num_layers, NUM_TOTALS].

    Raises:
        KernelError: some layer saw an id that is not below num_experts, so the counts are not whole.

    """
    by_expert, by_layer = tokens.cpu().numpy().copy(), totals.cpu().numpy().copy()
    columns = {name: by_layer[:, index] for index, name in enumerate(TOTALS)}
    strays = columns.pop("stray_ids")
    if strays.any():
        layer = int(strays.argmax())
        raise KernelError(
            f"expert_traffic: layer {layer} saw {strays[layer]} ids that are not below num_experts ="
            f" {by_expert.shape[2]}; count every id that topk_ids can hold, fused shared experts too"
        )
    arrays = {**columns, "prompt_tokens": by_expert[:, 0], "decode_tokens": by_expert[:, 1]}
    for array in arrays.values():
        array.setflags(write=False)
    return ExpertTraffic(**arrays)
