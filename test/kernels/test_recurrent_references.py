"""The CPU references of recurrent layers against their definitions, element by element."""

from __future__ import annotations

import math

import pytest
import torch
from sglang_layered_kernels.cpu import fused_attention as fused
from sglang_layered_kernels.cpu import gated_delta as ours
from sglang_layered_kernels.cpu.recurrent import FUNCTIONS, OPERATORS

LENGTHS, SLOTS = (1, 70, 5), torch.tensor([4, 2, 0])  # prompts, and where their states lie
STARTS = torch.tensor([0, 1, 71, 76])
KEY_HEADS, VALUE_HEADS, KEY_SIZE, VALUE_SIZE, WIDTH = 2, 4, 5, 3, 4


def randn(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def silu(x: float) -> float:
    return x / (1 + math.exp(-x))


def convolved(inputs: list[float], weight: list[float], bias: float) -> float:
    """One output of one channel: the newest input meets the last weight."""
    return silu(bias + sum(w * x for w, x in zip(weight, inputs, strict=True)))


def recurred(
    rows: tuple[torch.Tensor, ...], head: int, state: list[list[float]]
) -> tuple[list[list[float]], list[list[list[float]]]]:
    """Oracle: outputs of one head, and its state before the first token and after each."""
    q, k, v, g, beta = (part[:, head * part.shape[1] // VALUE_HEADS].tolist() for part in rows)
    outputs, states = [], [state]
    for token in range(len(v)):
        query, key = (
            [x / math.sqrt(sum(y * y for y in row[token]) + 1e-6) for x in row[token]] for row in (q, k)
        )
        decayed = [[math.exp(g[token]) * x for x in row] for row in state]
        missed = [
            v[token][i] - sum(row[j] * key[j] for j in range(KEY_SIZE)) for i, row in enumerate(decayed)
        ]
        state = [
            [x + beta[token] * missed[i] * key[j] for j, x in enumerate(row)] for i, row in enumerate(decayed)
        ]
        states.append(state)
        outputs.append([sum(x * y for x, y in zip(row, query, strict=True)) / KEY_SIZE**0.5 for row in state])
    return outputs, states


@pytest.mark.parametrize("fresh", [0, 1])
def test_convolution_goes_on_where_the_slot_says(fresh: int) -> None:
    x, weight, bias, states = randn(6, 76), randn(6, WIDTH, seed=2), randn(6, seed=3), randn(5, 6, WIDTH - 1)
    has_state, before = torch.tensor([True, bool(fresh), True]), states.clone()
    output = ours.causal_conv1d_fn_cpu(
        x,
        weight,
        bias,
        query_start_loc=STARTS,
        cache_indices=SLOTS,
        has_initial_state=has_state,
        conv_states=states,
    )
    for index, (start, length) in enumerate(zip(STARTS.tolist(), LENGTHS, strict=False)):
        past = before[SLOTS[index]] if has_state[index] else torch.zeros(6, WIDTH - 1)
        for channel in range(6):
            seen = past[channel].tolist() + x[channel, start : start + length].tolist()
            for token in range(length):
                expected = convolved(
                    seen[token : token + WIDTH], weight[channel].tolist(), float(bias[channel])
                )
                assert float(output[channel, start + token]) == pytest.approx(expected)
            assert states[SLOTS[index], channel].tolist() == pytest.approx(seen[1 - WIDTH :])
    assert torch.equal(states[[1, 3]], before[[1, 3]])


def test_the_next_token_of_a_convolution_is_that_of_a_longer_prompt() -> None:
    weight, states, x = randn(6, WIDTH, seed=2), randn(5, 6, WIDTH - 1), randn(3, 6)
    before = states.clone()
    output = ours.causal_conv1d_update_cpu(x, states, weight, conv_state_indices=SLOTS.int())
    for row, slot in enumerate(SLOTS.tolist()):
        for channel in range(6):
            seen = [*before[slot, channel].tolist(), float(x[row, channel])]
            assert float(output[row, channel]) == pytest.approx(
                convolved(seen, weight[channel].tolist(), 0.0)
            )
            assert states[slot, channel].tolist() == pytest.approx(seen[1:])
    assert torch.equal(states[[1, 3]], before[[1, 3]])


def test_recurrence_outputs_states_and_what_is_kept_on_the_way() -> None:
    q, k = randn(76, KEY_HEADS, KEY_SIZE), randn(76, KEY_HEADS, KEY_SIZE, seed=2)
    v, g = randn(76, VALUE_HEADS, VALUE_SIZE, seed=3), -randn(76, VALUE_HEADS, seed=4).abs()
    beta, states = (
        torch.sigmoid(randn(76, VALUE_HEADS, seed=5)),
        randn(5, VALUE_HEADS, VALUE_SIZE, KEY_SIZE, seed=6),
    )
    before, rows = states.clone(), (q, k, v, g, beta)
    output, _, kept = ours.chunk_gated_delta_rule_cpu(
        *(part[None] for part in rows),
        initial_state=states,
        initial_state_indices=SLOTS,
        cu_seqlens=STARTS,
        use_qk_l2norm_in_kernel=True,
    )
    chunks = iter(kept[0])
    for slot, start, length in zip(SLOTS.tolist(), STARTS.tolist(), LENGTHS, strict=False):
        own = tuple(part[start : start + length] for part in rows)
        heads = [recurred(own, head, before[slot, head].tolist()) for head in range(VALUE_HEADS)]
        for head, (expected, after) in enumerate(heads):
            torch.testing.assert_close(
                output[0, start : start + length, head], torch.tensor(expected).double()
            )
            torch.testing.assert_close(states[slot, head], torch.tensor(after[-1]).double())
        for first in range(0, length, ours.CHUNK_TOKENS):
            expected_state = torch.tensor([after[first] for _, after in heads]).double()
            torch.testing.assert_close(next(chunks), expected_state)
    assert next(chunks, None) is None
    assert torch.equal(states[[1, 3]], before[[1, 3]])


def test_the_next_token_of_a_recurrence_makes_its_own_gates() -> None:
    q, k = randn(1, 3, KEY_HEADS, KEY_SIZE), randn(1, 3, KEY_HEADS, KEY_SIZE, seed=2)
    v, a, b = (
        randn(1, 3, VALUE_HEADS, VALUE_SIZE, seed=3),
        randn(3, VALUE_HEADS),
        randn(3, VALUE_HEADS, seed=7),
    )
    decay, dt_bias = randn(VALUE_HEADS, seed=8).float(), randn(VALUE_HEADS, seed=9).float()
    states = randn(5, VALUE_HEADS, VALUE_SIZE, KEY_SIZE, seed=6)
    before = states.clone()
    output = ours.fused_sigmoid_gating_delta_rule_update_cpu(
        decay,
        dt_bias,
        q,
        k,
        v,
        a,
        b,
        initial_state_source=states,
        initial_state_indices=SLOTS,
        cu_seqlens=torch.arange(4),
    )
    for row, slot in enumerate(SLOTS.tolist()):
        for head in range(VALUE_HEADS):
            gate = -math.exp(decay[head]) * math.log1p(math.exp(float(a[row, head] + dt_bias[head])))
            step = 1 / (1 + math.exp(-float(b[row, head])))
            gates = (torch.full((1, VALUE_HEADS), gate), torch.full((1, VALUE_HEADS), step))
            own = (q[0, row : row + 1], k[0, row : row + 1], v[0, row : row + 1], *gates)
            [expected], (_, after) = recurred(own, head, before[slot, head].tolist())
            assert output[0, row, head].tolist() == pytest.approx(expected, rel=1e-5)
            torch.testing.assert_close(states[slot, head], torch.tensor(after).double(), rtol=1e-5, atol=1e-6)


def test_gated_norm_divides_by_the_root_mean_square() -> None:
    x, weight, gate = randn(3, 6).float(), randn(6, seed=2).float(), randn(3, 6, seed=3).float()
    output = ours.fused_rmsnorm_gated_cpu(x, weight, gate, 1e-5)
    for row in range(3):
        size = math.sqrt(sum(float(y) ** 2 for y in x[row]) / 6 + 1e-5)
        expected = [float(weight[i]) * float(x[row, i]) / size * silu(float(gate[row, i])) for i in range(6)]
        assert output[row].tolist() == pytest.approx(expected, rel=1e-5)


def test_qwen35_cuts_and_norms() -> None:
    q, k = randn(2, 4, seed=1), randn(2, 4, seed=2)
    v, z, b, a = randn(2, 6, seed=3), randn(2, 6, seed=4), randn(2, 3, seed=5), randn(2, 3, seed=6)
    cut = fused.fused_qkvzba_split_reshape_cat_contiguous_cpu(
        torch.cat([q, k, v, z], 1), torch.cat([b, a], 1), 2, 3, 2, 2
    )
    for got, expected in zip(cut, (torch.cat([q, k, v], 1), z.view(2, 3, 2), b, a), strict=True):
        assert torch.equal(got, expected)
    queries, gates, weight = randn(2, 2, 4).float(), randn(2, 2, 4, seed=8).float(), randn(4, seed=9).float()
    beside = torch.stack([queries, gates], dim=2).reshape(2, -1)
    normed, keys, gate = fused.fused_qk_gemma_rmsnorm_with_gate_cpu(
        beside, queries[:, 0], weight, weight, 1e-6, 4, 2
    )
    for row, head in ((0, 0), (1, 1)):
        size = math.sqrt(float((queries[row, head] ** 2).mean()) + 1e-6)
        expected = (queries[row, head] / size * (1 + weight)).tolist()
        assert normed.view(2, 2, 4)[row, head].tolist() == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(keys, normed.view(2, 2, 4)[:, 0])
    assert torch.equal(gate.view(2, 2, 4), gates)


@pytest.mark.parametrize("inplace", [True, False])
def test_sigmoid_gate(inplace: bool) -> None:
    x, gate = randn(2, 4), randn(2, 2, 2)
    expected = x / (1 + torch.exp(-gate.view(2, 4)))
    before = x.clone()
    output = fused.fused_sigmoid_mul_cpu(x, gate, inplace=inplace)
    torch.testing.assert_close(output, expected)
    assert (output is x) is inplace
    assert inplace or torch.equal(x, before)


def test_names_are_those_that_sglang_asks_for() -> None:
    import sglang  # noqa: F401  # its seam offers them, where there is no CUDA driver
    from sgl_kernel import mamba

    assert FUNCTIONS.items() <= vars(mamba).items()
    assert OPERATORS.items() <= vars(torch.ops.sgl_kernel).items()
    assert not hasattr(torch.ops.sgl_kernel, "convert_weight_packed"), "SGLang would take it for AMX"
