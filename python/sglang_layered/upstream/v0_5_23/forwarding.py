"""SGLang 0.5.23's forwards: the context of layers, what a batch counts, the inputs of decode graphs.

Upstream: srt/model_executor/, srt/managers/mm_schedule.py.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from operator import attrgetter
from typing import Any

import torch
from sglang.srt.managers import mm_schedule
from sglang.srt.model_executor.cuda_graph_buffer_registry import (
    build_decode_registry as build_decode_registry,
)
from sglang.srt.model_executor.runner import decode_cuda_graph_runner
from sglang.srt.runtime_context import get_model

CONTEXT_TAKES = ("forward_batch",)
"""Beside its context, what `forward_context` takes: `**dict.fromkeys(CONTEXT_TAKES, batch)`.

Experts learn from the batch how many of its rows are no padding. Without one they take that of the context
around, which in a layered step is of another batch's rows.
"""

COUNTS = ("global_num_token_non_padded_cpu",)
"""Fields of a ForwardBatch that count its rows, as numbers."""

COUNT_TENSORS = ("num_token_non_padded", "global_num_token_non_padded")
"""And as tensors, each None where SGLang needs none."""

DRAFT_ATTENTION_IS_NAMED = True
"""Whether what makes a draft's attention gives its name before it (srt/speculative/draft_utils.py)."""

num_shared_slots: Callable[[Any], int] = attrgetter("shared_experts.num_shared_topk_slots")
"""Of a TopKConfig: shared experts that are chosen with the others."""

# Rows are gathered from no other rank: `refuse_unfit_server` has seen to that.
build_replay_fb_view = partial(decode_cuda_graph_runner.build_replay_fb_view, global_num_tokens_cpu=None)


def plan_own_slots(model_runner: Any, batch: Any) -> None:
    """Let attention plan for a batch that SGLang has not made: its KV slots are those that it names.

    Where a graph is captured they are what lies there at a replay.
    """
    model_runner.kv_index_translator.bind_runner_slots(batch)


def settings_of(model_runner: Any) -> AbstractContextManager[Any]:
    """Inside, settings are the model's own, as SGLang has them in a forward."""
    settings: AbstractContextManager[Any] = get_model().override(
        shared_experts=model_runner.model.shared_experts_config
    )
    return settings


def is_encoded(item: Any) -> bool:
    """True where SGLang still has the embedding of an image."""
    return bool(mm_schedule.embedding_cache.has(item.hash))


def encode(model_runner: Any, images: Sequence[Any]) -> None:
    """Run the encoder on images of the requests, so that SGLang's cache has their embeddings.

    Where the cache is too small for them the prompt's embedding runs the encoder once more.
    """
    spans, far = [image.offsets[0] for image in images], max(image.offsets[0][1] for image in images) + 1
    wanted = mm_schedule.PerImageRequestInfo(0, list(images), spans, 0, far)
    encoder = model_runner.model.get_image_feature
    mm_schedule._batch_encode_per_image_misses(encoder, [wanted], torch.device(model_runner.device))
