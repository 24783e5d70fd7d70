"""SGLang 0.5.17's forwards: the context of layers, what a batch counts, the inputs of decode graphs.

Upstream: srt/model_executor/, srt/managers/mm_utils.py.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from operator import attrgetter
from typing import Any

import torch
from sglang.srt.managers import mm_utils
from sglang.srt.model_executor.cuda_graph_buffer_registry import (
    build_decode_registry as build_decode_registry,
)
from sglang.srt.model_executor.runner.decode_cuda_graph_runner import (
    build_replay_fb_view as build_replay_fb_view,
)

CONTEXT_TAKES: tuple[str, ...] = ()
"""Beside its context, what `forward_context` takes: `**dict.fromkeys(CONTEXT_TAKES, batch)`."""

COUNTS = ("num_token_non_padded_cpu",)
"""Fields of a ForwardBatch that count its rows, as numbers."""

COUNT_TENSORS = ("num_token_non_padded",)
"""And as tensors, each None where SGLang needs none."""

DRAFT_ATTENTION_IS_NAMED = False
"""Whether what makes a draft's attention gives its name before it (srt/speculative/draft_utils.py)."""

num_shared_slots: Callable[[Any], int] = attrgetter("num_fused_shared_experts")
"""Of a TopKConfig: shared experts that are chosen with the others."""


def plan_own_slots(model_runner: Any, batch: Any) -> None:
    """Nothing: attention takes KV slots from the batch."""


def settings_of(model_runner: Any) -> AbstractContextManager[Any]:
    """Inside, settings are the model's own, as SGLang has them in a forward."""
    return nullcontext()


def is_encoded(item: Any) -> bool:
    """True where SGLang still has the embedding of an image."""
    return bool(mm_utils.embedding_cache.has(item.hash))


def encode(model_runner: Any, images: Sequence[Any]) -> None:
    """Run the encoder on images of the requests, so that SGLang's cache has their embeddings.

    Where the cache is too small for them the prompt's embedding runs the encoder once more.
    """
    spans, far = [image.offsets[0] for image in images], max(image.offsets[0][1] for image in images) + 1
    wanted = mm_utils.PerImageRequestInfo(0, list(images), spans, 0, far)
    encoder = model_runner.model.get_image_feature
    mm_utils._batch_encode_per_image_misses(encoder, [wanted], torch.device(model_runner.device))
