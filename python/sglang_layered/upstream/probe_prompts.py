"""Two prompts that are no requests, for what a model is asked while a server starts."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from sglang.srt.model_executor.forward_batch_info import CaptureHiddenMode, ForwardBatch, ForwardMode
from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

from sglang_layered.upstream.lora import Adapters
from sglang_layered.upstream.releases import forwarding

NUM_TOKENS, NUM_OTHER_TOKENS = 5, 3
ROWS = (0, 1)  # of the table of requests; 0 is SGLang's for padding


@contextmanager
def two_prompts(model_runner: Any) -> Iterator[tuple[ForwardBatch, ForwardBatch]]:
    """Two prompts with slots of their own, on pages after the one that SGLang has for padding."""
    pool, page = model_runner.req_to_token_pool.req_to_token, model_runner.page_size
    starts = (page, page + -(-NUM_TOKENS // page) * page)
    slots = torch.arange(starts[0], starts[1] + NUM_OTHER_TOKENS, device=model_runner.device)
    # Sliding-window layers have slots of their own, which a table finds.
    mapping = getattr(model_runner.token_to_kv_pool_allocator, "full_to_swa_index_mapping", None)
    tables: list[tuple[torch.Tensor, tuple[Any, ...]]] = [(pool, (slice(0, len(ROWS)), slice(0, NUM_TOKENS)))]
    if mapping is not None:
        tables.append((mapping, (slots,)))
    kept = [table[place].clone() for table, place in tables]
    if mapping is not None:
        mapping[slots] = slots.to(mapping.dtype)
    try:
        asked = _prompt(model_runner, ROWS[0], starts[0], NUM_TOKENS)
        yield asked, _prompt(model_runner, ROWS[1], starts[1], NUM_OTHER_TOKENS)
    finally:
        for (table, place), values in zip(tables, kept, strict=True):
            table[place] = values


def _prompt(model_runner: Any, row: int, slot: int, num_tokens: int) -> ForwardBatch:
    """A prompt of distinct tokens without a prefix, as SGLang makes one for a request."""
    device, vocab_size = model_runner.device, model_runner.model_config.vocab_size
    slots = torch.arange(slot, slot + num_tokens, device=device)
    model_runner.req_to_token_pool.req_to_token[row, :num_tokens] = slots
    positions = torch.arange(num_tokens, device=device)
    length = torch.tensor([num_tokens], device=device)
    batch = ForwardBatch(
        forward_mode=ForwardMode.EXTEND,
        global_forward_mode=ForwardMode.EXTEND,
        batch_size=1,
        input_ids=(slots * 7 + 3) % vocab_size,
        req_pool_indices=torch.tensor([row], device=device),
        seq_lens=length,
        seq_lens_cpu=length.cpu(),
        orig_seq_lens=length.int(),
        seq_lens_sum=num_tokens,
        out_cache_loc=slots,
        positions=positions,
        mrope_positions=positions.repeat(3, 1) if model_runner.model_config.model_is_mrope else None,
        extend_num_tokens=num_tokens,
        extend_seq_lens=length.int(),
        extend_prefix_lens=torch.zeros_like(length, dtype=torch.int32),
        extend_start_loc=torch.zeros_like(length, dtype=torch.int32),
        extend_seq_lens_cpu=[num_tokens],
        extend_prefix_lens_cpu=[0],
        extend_logprob_start_lens_cpu=[0],
        capture_hidden_mode=CaptureHiddenMode.NULL,
        spec_algorithm=SpeculativeAlgorithm.NONE,
        lora_ids=[None],
    )
    forwarding.plan_own_slots(model_runner, batch)
    model_runner._prepare_eager_forward_batch(batch)
    if (adapters := Adapters.of(model_runner)) is not None:
        adapters.prepare(batch)
    return batch
