"""Rows of a layered step: joining prompt and decode rows, and cutting them apart again.

In every hybrid tensor the prompt rows come first: `[prompt; decode]`.
"""

from collections.abc import Callable
from dataclasses import fields
from operator import itemgetter

import torch
from sglang.srt.model_executor.forward_batch_info import ForwardBatch, ForwardMode, PPProxyTensors

from sglang_layered.upstream.chosen_tokens import choosing_like
from sglang_layered.upstream.images import FEATURES
from sglang_layered.upstream.releases import forwarding

BATCH_FIELDS = tuple(item.name for item in fields(ForwardBatch))
_fields_of = itemgetter(*BATCH_FIELDS)


def join_rows(prompt: PPProxyTensors, decode: PPProxyTensors) -> PPProxyTensors:
    """Stack the activations of both; keys must agree, a key that is None in one is None in both.

    Only features of images are the prompt's alone: rows that decode add zeros. Only tokens that an indexer
    chose may be the decode rows' alone.
    """
    features = prompt.tensors.get(FEATURES)
    if features is not None:
        zeros = features.new_zeros((decode["hidden_states"].shape[0], features.shape[1]))
        decode = PPProxyTensors(decode.tensors | {FEATURES: zeros})
    if prompt.tensors.keys() != decode.tensors.keys():
        prompt = choosing_like(decode, prompt)
    if prompt.tensors.keys() != decode.tensors.keys():
        raise AssertionError(f"activations differ: {set(prompt.tensors)} and {set(decode.tensors)}")
    return PPProxyTensors(
        {key: _join(prompt.tensors[key], decode.tensors[key]) for key in prompt.tensors},
    )


def cut_rows(hybrid: PPProxyTensors, num_prompt_rows: int) -> tuple[PPProxyTensors, PPProxyTensors]:
    """Views of the prompt rows and of the decode rows, these without the zeros that `join_rows` gave them."""
    prompt = keep_rows(hybrid, lambda tensor: tensor[:num_prompt_rows])
    decode = keep_rows(hybrid, lambda tensor: tensor[num_prompt_rows:])
    decode.tensors.pop(FEATURES, None)
    return prompt, decode


def keep_rows(rows: PPProxyTensors, keep: Callable[[torch.Tensor], torch.Tensor]) -> PPProxyTensors:
    """The rows that `keep` takes out of each tensor."""
    return PPProxyTensors(
        {key: None if tensor is None else keep(tensor) for key, tensor in rows.tensors.items()}
    )


def num_rows_of(prompt: ForwardBatch | None, decode: ForwardBatch | None) -> tuple[int, int]:
    """Prompt rows and decode rows, of which a request has several where drafts are verified."""
    return (
        0 if prompt is None else prompt.input_ids.shape[0],
        0 if decode is None else decode.input_ids.shape[0],
    )


def hybrid_batch(prompt: ForwardBatch, decode: ForwardBatch) -> ForwardBatch:
    """The ForwardBatch of a group's layers: both batches' rows, prompt first.

    Attention and logits get the real prompt or decode batch, never this one. Upstream:
    srt/model_executor/forward_batch_info.py.
    """
    rows = object.__new__(ForwardBatch)
    # `dataclasses.replace` is far slower. Fields alone, as there: what rides on a batch stays its own.
    vars(rows).update(
        zip(BATCH_FIELDS, _fields_of(vars(prompt)), strict=True),
        forward_mode=ForwardMode.MIXED,
        batch_size=prompt.batch_size + decode.batch_size,
        input_ids=torch.cat([prompt.input_ids, decode.input_ids]),
        positions=torch.cat([prompt.positions, decode.positions]),
        req_pool_indices=torch.cat([prompt.req_pool_indices, decode.req_pool_indices]),
        seq_lens=torch.cat([prompt.seq_lens, decode.seq_lens]),
        # On a GPU drafts are verified without lengths on the host.
        seq_lens_cpu=(
            None if decode.seq_lens_cpu is None else _join(prompt.seq_lens_cpu, decode.seq_lens_cpu)
        ),
        seq_lens_sum=None,
        orig_seq_lens=_join(prompt.orig_seq_lens, decode.orig_seq_lens),
        # Three positions a row (time, height, width), [3, rows]; a multimodal model takes them instead.
        mrope_positions=(
            None
            if prompt.mrope_positions is None
            else torch.cat([prompt.mrope_positions, decode.mrope_positions], dim=1)
        ),
        out_cache_loc=torch.cat([prompt.out_cache_loc, decode.out_cache_loc]),
        **{name: getattr(prompt, name) + getattr(decode, name) for name in forwarding.COUNTS},
        **{
            name: None if one is None or other is None else one + other
            for name in forwarding.COUNT_TENSORS
            for one, other in [(getattr(prompt, name), getattr(decode, name))]
        },
        rids=[*(prompt.rids or []), *(decode.rids or [])],
        lora_ids=[*(prompt.lora_ids or []), *(decode.lora_ids or [])],
    )
    return rows


def _join(prompt: torch.Tensor | None, decode: torch.Tensor | None) -> torch.Tensor | None:
    if prompt is None or decode is None:
        if prompt is not decode:
            raise AssertionError("a tensor is there for the prompt rows or the decode rows only")
        return None
    return torch.cat([prompt, decode])
