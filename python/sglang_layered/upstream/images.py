"""Images of multimodal models: what an encoder has to do, and the features that early layers add.

SGLang runs the encoder inside the model's forward, where the prompt is embedded. Qwen3-VL's gives more than
embeddings: features that the language model adds after each of its first layers. A layer range that starts
behind the embedding gets none from SGLang and would add nothing without a word, so they are parked with the
prompt's rows. Upstream: srt/managers/mm_utils.py `general_mm_embed_routine`, srt/models/qwen3_vl_moe.py
`Qwen3MoeLLMModel`.
"""

import inspect
from collections import deque
from collections.abc import Callable
from typing import Any

from sglang.srt.managers.schedule_batch import ScheduleBatch
from sglang.srt.model_executor.forward_batch_info import PPProxyTensors
from torch import nn

from sglang_layered.upstream.releases import forwarding

DEPTH = "deepstack_embed_to_decoder_layer"  # Qwen3.5 takes features and has none
ARGUMENT = "input_deepstack_embeds"
FEATURES = "layered_deepstack"  # no model has activations of this name


def unseen_images(batch: ScheduleBatch, most_tokens: int) -> deque[list[Any]]:
    """Images with rows in a prompt batch that the encoder has not seen lately, as it takes them step by step.

    Each list is of images that have at most `most_tokens` together, or of one. SGLang keeps embeddings by
    image for a while: those of an image that an earlier chunk began, or that many ask about, cost nothing.
    """
    spans = zip(batch.multimodal_inputs or (), batch.prefix_lens, batch.extend_lens, strict=False)
    found = {
        item.hash: (item, last - first + 1)
        for inputs, prefix, rows in spans
        if inputs is not None
        for item in inputs.mm_items
        for first, last in item.offsets
        if first < prefix + rows and last >= prefix and not forwarding.is_encoded(item)
    }
    parts: deque[list[Any]] = deque()
    room = 0
    for item, num_tokens in found.values():
        # Several images in one item are kept together only, and not by its hash.
        if not parts or (num_tokens > room and len(item.offsets) == 1):
            parts.append([])
            room = most_tokens
        parts[-1].append(item)
        room -= num_tokens
    return parts


class Deepstack:
    """Gives any range of a language model's layers the features that its first `depth` layers add.

    They are [rows, depth x hidden]: layer i adds its part where layer i + 1, or the final norm, begins.
    """

    def __init__(self, stack: Any) -> None:
        self._attributes = vars(stack)
        self._forward = stack.forward
        self._depth = len(getattr(stack, DEPTH))

    @classmethod
    def of(cls, stack: nn.Module) -> "Deepstack | None":
        """None for a language model that adds no features."""
        adds = ARGUMENT in inspect.signature(stack.forward).parameters and hasattr(stack, DEPTH)
        return cls(stack) if adds else None

    def run(self, forward: Callable[[], Any], end: int, rows: PPProxyTensors | None) -> Any:
        """Run a range that ends before layer `end`; `rows` as for `LayerRanges.run`.

        Returns:
            What the range gives; its rows carry the features on while a later layer adds some.
        """
        features = None if rows is None else rows.tensors.get(FEATURES)
        if rows is not None and features is None:
            return forward()

        def handed(*args: Any, **kwargs: Any) -> Any:
            nonlocal features
            if features is None:
                features = kwargs.get(ARGUMENT)  # SGLang's, of a prompt that was just embedded
            return self._forward(*args, **kwargs | {ARGUMENT: features})

        self._attributes["forward"] = handed
        try:
            output = forward()
        finally:
            del self._attributes["forward"]
        if features is not None and end <= self._depth and isinstance(output, PPProxyTensors):
            output.tensors[FEATURES] = features
        return output
