"""What an indexer chose and what it attends to itself, of prompt rows and of decode rows in one layer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.model_executor.forward_batch_info import PPProxyTensors
from torch import nn

from sglang_layered.runner.rows import cut_rows, join_rows
from sglang_layered.upstream.chosen_tokens import CHOSEN, asks_behind_the_last, joined_outputs
from sglang_layered.upstream.runner import HybridAttention, SplitAttention

ROWS = torch.arange(10.0).view(5, 2)
PROMPT, DECODE = ROWS[:3], ROWS[3:]
CHOICE = torch.tensor([[4, 7, -1], [1, 2, 3], [5, 6, -1], [8, 9, 0], [2, -1, -1]], dtype=torch.int32)
NOTHING = torch.full((3, 3), -1, dtype=torch.int32)


def test_without_an_indexer_rows_are_joined() -> None:
    assert torch.equal(joined_outputs(PROMPT, DECODE), ROWS)


@pytest.mark.parametrize("prompt", [(PROMPT, None), PROMPT], ids=["latent", "expanded keys"])
def test_nobody_chooses_for_a_layer_that_chooses_anew(prompt: Any) -> None:
    rows, choice = joined_outputs(prompt, (DECODE, None))
    assert torch.equal(rows, ROWS) and choice is None


def test_a_choice_has_a_row_for_each_of_both() -> None:
    rows, choice = joined_outputs((PROMPT, CHOICE[:3]), (DECODE, CHOICE[3:]))
    assert torch.equal(rows, ROWS) and torch.equal(choice, CHOICE)


def test_rows_that_attend_to_all_tokens_choose_nothing() -> None:
    rows, choice = joined_outputs(PROMPT, (DECODE, CHOICE[3:]))
    assert torch.equal(rows, ROWS) and torch.equal(choice, torch.cat([NOTHING, CHOICE[3:]]))


@pytest.mark.parametrize("has_choice", [True, False])
def test_a_choice_is_parked_with_the_rows(has_choice: bool) -> None:
    """A prompt alone that attends to all tokens is given none by SGLang."""
    parked = {"hidden_states": PROMPT, "residual": None} | ({CHOSEN: CHOICE[:3]} if has_choice else {})
    decode = PPProxyTensors({"hidden_states": DECODE, "residual": None, CHOSEN: CHOICE[3:]})
    joined = join_rows(PPProxyTensors(parked), decode)
    chosen = CHOICE[:3] if has_choice else NOTHING
    assert torch.equal(joined[CHOSEN], torch.cat([chosen, CHOICE[3:]]))
    prompt, rest = cut_rows(joined, 3)
    assert torch.equal(prompt[CHOSEN], chosen) and torch.equal(rest[CHOSEN], CHOICE[3:])


def test_a_choice_of_the_prompt_alone_is_an_error() -> None:
    prompt = PPProxyTensors({"hidden_states": PROMPT, CHOSEN: CHOICE[:3]})
    with pytest.raises(AssertionError, match="activations differ"):
        join_rows(prompt, PPProxyTensors({"hidden_states": DECODE}))


@pytest.mark.parametrize(
    ("fields", "asks"), [({}, False), ({"index_topk_freq": 4}, True), ({"index_topk_freq": 3}, False)]
)
def test_where_a_choice_is_asked_for_behind_the_last_layer(fields: dict[str, int], asks: bool) -> None:
    """Of 7 layers, where the one behind would take a choice over: every fourth chooses from layer 1 on."""
    names = ["DeepseekV32ForCausalLM"]
    config = SimpleNamespace(architectures=names, index_topk=8, num_hidden_layers=7, **fields)
    assert asks_behind_the_last(SimpleNamespace(use_dsa=True, config=config)) is asks
    assert not asks_behind_the_last(SimpleNamespace(config=config))


class Module(nn.Module):
    """An attention module; adds what is its batch's, and hands on what it took."""

    def forward(
        self, positions: Any, hidden_states: Any, forward_batch: Any, layer: int = 0, **by_row: Any
    ) -> Any:
        rows = hidden_states + positions.unsqueeze(1) + forward_batch.add + layer
        return rows * by_row["llama_4_scaling"], by_row["prev_topk_indices"]


def test_attention_modules_get_their_rows_of_everything() -> None:
    """Also where a layer has two of them, in a list."""
    model = nn.ModuleDict(
        {
            "a": nn.ModuleDict({"self_attn": Module()}),
            "b": nn.ModuleDict({"self_attn": nn.ModuleList([Module()])}),
        }
    )
    args = SimpleNamespace(enable_lora=False)
    runner = SimpleNamespace(model=model, attn_backend=None, server_args=args, lora_manager=None)
    prompt = SimpleNamespace(input_ids=torch.zeros(3), add=100, moe_num_token_non_padded=None)
    positions, scaling = torch.arange(5.0), torch.arange(1.0, 6).unsqueeze(1)
    by_row: dict[str, Any] = {"prev_topk_indices": CHOICE, "llama_4_scaling": scaling}
    added = torch.tensor([100] * 3 + [200] * 2).unsqueeze(1) + positions.unsqueeze(1) + 7
    with SplitAttention(runner, None).bound(prompt, SimpleNamespace(add=200, moe_num_token_non_padded=None)):  # type: ignore[arg-type]
        for module in (model["a"]["self_attn"], model["b"]["self_attn"][0]):
            rows, choice = module.forward(positions, ROWS, None, layer=7, **by_row)
            assert torch.equal(rows, (ROWS + added) * scaling) and torch.equal(choice, CHOICE)


class Indexing:
    """An attention backend of MiniMax-M3: gives the index heads' output before attention's."""

    needs_cpu_seq_lens = prefill_attention_backend_str = decode_attention_backend_str = None

    def forward(self, q: Any, k: Any, v: Any, layer: Any, batch: Any, save: bool, **index: Any) -> Any:
        values = index["idx_v"]
        return None if values is None else index["idx_q"] + values, q + k + v + index["idx_k"] + batch.add


@pytest.mark.parametrize("has_values", [True, False])
def test_an_indexers_rows_are_cut_along(has_values: bool) -> None:
    prompt = SimpleNamespace(input_ids=torch.zeros(3), add=100, moe_num_token_non_padded=None)
    attention = HybridAttention(Indexing(), Indexing()).bind(prompt, SimpleNamespace(add=200))  # type: ignore[arg-type]
    index = {"idx_q": ROWS * 2, "idx_k": ROWS * 3, "idx_v": ROWS * 5 if has_values else None}
    indexed, attended = attention.forward(ROWS, ROWS, ROWS, None, None, **index)  # type: ignore[arg-type]
    assert torch.equal(attended, ROWS * 6 + torch.tensor([100] * 3 + [200] * 2).unsqueeze(1))
    assert indexed is None if not has_values else torch.equal(indexed, ROWS * 7)
