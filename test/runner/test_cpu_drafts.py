"""Attention for CPUs where drafts are grown and verified, against the reference (no server is started)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.layers.radix_attention import AttentionType
from sglang_layered_kernels.group_attention.reference import group_attention_reference

from sglang_layered.upstream.cpu_attention import CpuAttention
from sglang_layered.upstream.cpu_drafts import DraftSteps

HEADS, KV_HEADS, SIZE, NUM_SLOTS, SCALE = 4, 2, 8, 400, 0.3
LENGTHS = (150, 9)  # tokens of each request, without drafts
GENERATOR = torch.Generator().manual_seed(7)
LAYER = SimpleNamespace(
    tp_q_head_num=HEADS,
    qk_head_dim=SIZE,
    v_head_dim=SIZE,
    scaling=SCALE,
    logit_cap=0.0,
    sliding_window_size=-1,
    layer_id=0,
    is_cross_attention=False,
    attn_type=AttentionType.DECODER,
)


class Served:
    """A KV pool, and requests whose slots lie about."""

    def __init__(self) -> None:
        shape = (NUM_SLOTS, KV_HEADS, SIZE)
        self.cache = tuple(torch.randn(shape, generator=GENERATOR, dtype=torch.float64) for _ in range(2))
        self.table = torch.randperm(NUM_SLOTS, generator=GENERATOR).view(2, -1).int()
        keys, values = self.cache
        self.runner = SimpleNamespace(
            device="cpu",
            dtype=torch.float64,
            req_to_token_pool=SimpleNamespace(req_to_token=self.table),
            token_to_kv_pool=SimpleNamespace(
                get_key_buffer=lambda layer: keys, get_value_buffer=lambda layer: values
            ),
        )

    def batch(self, *, is_verify: bool, spec_info: Any = None) -> SimpleNamespace:
        mode = {"is_target_verify": lambda: is_verify, "is_decode_or_idle": lambda: not is_verify}
        return SimpleNamespace(
            forward_mode=SimpleNamespace(**mode),
            seq_lens=torch.tensor(LENGTHS),
            req_pool_indices=torch.arange(2),
            out_cache_loc=None,
            spec_info=spec_info,
        )

    def expected(self, query: torch.Tensor, seen: list[torch.Tensor]) -> torch.Tensor:
        """Each row over the tokens at these slots, the last one its own."""
        tables = torch.nn.utils.rnn.pad_sequence(seen, batch_first=True)
        lengths = [len(slots) for slots in seen]
        ones = [1] * len(seen)
        rows = query.view(-1, HEADS, SIZE)
        known = (self.cache, tables, range(len(seen)), ones, lengths)
        return group_attention_reference(rows, *known, scale=SCALE).flatten(1)


def queries(num_rows: int) -> torch.Tensor:
    return torch.randn(num_rows, HEADS * SIZE, generator=GENERATOR, dtype=torch.float64)


@pytest.mark.parametrize(
    ("topk", "paths"),
    [
        (1, [[[0], [0, 1], [0, 1, 2]]] * 2),
        (2, [[[0], [0, 1], [0, 2]], [[0], [0, 1], [0, 1, 2]]]),
        (-1, [[[0], [0, 1], [0, 2]], [[0], [0, 1], [2]]]),  # the last one's parent was left out
    ],
)
def test_drafts_of_all_requests_are_verified(topk: int, paths: list[list[list[int]]]) -> None:
    served, query = Served(), queries(6)
    masks = torch.zeros(2, 3, 3, dtype=torch.bool)
    for mask, of_request in zip(masks, paths, strict=True):
        for row, path in zip(mask, of_request, strict=True):
            row[path] = True
    drafts = SimpleNamespace(draft_token_num=3, tree_topk=topk, custom_mask=masks.flatten())
    batch, backend = served.batch(is_verify=True, spec_info=drafts), CpuAttention(served.runner)
    backend.init_forward_metadata(batch)
    got = backend.forward_extend(query, None, None, LAYER, batch)
    seen = [
        torch.cat([table[:length], table[length:][path]])
        for table, length, of_request in zip(served.table, LENGTHS, paths, strict=True)
        for path in of_request
    ]
    torch.testing.assert_close(got, served.expected(query, seen), atol=1e-6, rtol=0)


@pytest.mark.parametrize("topk", [1, 2])
def test_each_step_of_a_draft_sees_its_own_branch(topk: int) -> None:
    served, steps = Served(), 3
    drafts, batch = DraftSteps(served.runner, topk, steps), served.batch(is_verify=False)
    drafts.init_forward_metadata(batch)
    assert len(drafts.attn_backends) == steps - 1
    for step, backend in enumerate(drafts.attn_backends):
        query = queries(2 * topk)
        got = backend.forward_decode(query, None, None, LAYER, batch)
        seen = [
            torch.cat([table[:length], table[length + branch * steps :][: step + 1]])
            for table, length in zip(served.table, LENGTHS, strict=True)
            for branch in range(topk)
        ]
        torch.testing.assert_close(got, served.expected(query, seen), atol=1e-6, rtol=0)
