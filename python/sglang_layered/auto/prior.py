"""What is thought of step times before any step ran: sizes of the model, rates of the device. Pure."""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from sglang_layered.auto.step_times import Amounts, amounts
from sglang_layered.core.layer_shape import LayerShape
from sglang_layered.core.pacing import DeviceRates, ModelSizes, StepLoad

DECODE_ROWS = (1, 8, 64, 256)
CONTEXT_TOKENS = 1024
PROMPT_TOKENS = (64, 512, 4096)
UNKNOWN_LAYER = LayerShape(dense_params=50_000_000, attention_width=4096)


def imagined_steps(
    sizes: ModelSizes, layers: Sequence[LayerShape], rates: DeviceRates
) -> list[tuple[Amounts, float]]:
    """Steps of all kinds with the seconds that sizes and rates give."""
    layer = layers[len(layers) // 2] if layers else UNKNOWN_LAYER
    costs = _coefficients(sizes, layer, rates)
    rows = [amounts(sizes, load) for load in _loads(sizes.num_layers)]
    return [(row, float(costs @ np.array(row))) for row in rows]


def _loads(num_layers: int) -> Iterator[StepLoad]:
    for decode_rows in DECODE_ROWS:
        yield StepLoad(decode_rows, decode_rows * CONTEXT_TOKENS)
    for tokens in PROMPT_TOKENS:
        yield StepLoad(0, 0, (tokens,), (0,), num_layers)
        for is_apart in (False, True):
            for part in (1, num_layers):
                yield StepLoad(8, 8 * CONTEXT_TOKENS, (tokens,), (tokens,), part, is_apart)


def _coefficients(sizes: ModelSizes, layer: LayerShape, rates: DeviceRates) -> npt.NDArray[np.float64]:
    """Seconds per amount, in the order of `NAMES`."""
    dense_s = layer.dense_params * layer.param_bytes * rates.byte_s
    experts_s = layer.expert_bytes * rates.byte_s if layer.num_experts else 0.0
    a_row_s = layer.flop(1, 0) * rates.flop_s
    a_pair_s = 4 * layer.attention_width * rates.flop_s
    each_layer = [rates.layer_call_s + dense_s, experts_s, a_row_s, a_pair_s, a_row_s, a_pair_s]
    apart_s = rates.layer_call_s + dense_s
    return sizes.num_layers * np.array([*each_layer, rates.layer_call_s, apart_s])
