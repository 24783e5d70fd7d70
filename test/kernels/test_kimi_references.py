"""The CPU references of Kimi Delta Attention against its definition, element by element."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from sglang_layered_kernels.cpu import kimi_delta as ours
from sglang_layered_kernels.cpu.gated_delta import CHUNK_TOKENS

STARTS, SLOTS = torch.tensor([0, 1, 71, 76]), torch.tensor([4, 2, 0])  # of three prompts, one in two chunks
HEADS, KEY_SIZE, VALUE_SIZE = 2, 5, 3
Matrix = list[list[float]]


def randn(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


A_LOG, DT_BIAS = randn(1, 1, HEADS, 1, seed=8), randn(HEADS * KEY_SIZE, seed=9)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def unit(row: list[float]) -> list[float]:
    length = math.sqrt(sum(x * x for x in row) + 1e-6)
    return [x / length for x in row]


def decays(head: int, gate: list[float], lower_bound: float | None) -> list[float]:
    """Of every key channel, in one step."""
    rate, bias = math.exp(float(A_LOG[0, 0, head, 0])), DT_BIAS[head * KEY_SIZE :].tolist()
    opened = [gate[j] + bias[j] for j in range(KEY_SIZE)]
    if lower_bound is not None:
        return [math.exp(lower_bound * sigmoid(rate * x)) for x in opened]
    return [math.exp(-rate * math.log1p(math.exp(x))) for x in opened]


def stepped(
    state: Matrix,
    head: int,
    token: tuple[torch.Tensor, ...],
    beta: float,
    lower_bound: float | None,
) -> tuple[list[float], Matrix]:
    """Oracle: one head's output for a token, and its matrix [value size, key size] after it."""
    q, k, v, gate = (part[head].tolist() for part in token)
    query, key, decay = unit(q), unit(k), decays(head, gate, lower_bound)
    decayed = [[x * decay[j] for j, x in enumerate(row)] for row in state]
    missed = [v[i] - sum(x * y for x, y in zip(row, key, strict=True)) for i, row in enumerate(decayed)]
    state = [[x + beta * missed[i] * key[j] for j, x in enumerate(row)] for i, row in enumerate(decayed)]
    return [sum(x * y for x, y in zip(row, query, strict=True)) / KEY_SIZE**0.5 for row in state], state


def rows(num_tokens: int) -> tuple[torch.Tensor, ...]:
    """q, k, v and the gate before its activation."""
    sizes = (KEY_SIZE, KEY_SIZE, VALUE_SIZE, KEY_SIZE)
    return tuple(randn(num_tokens, HEADS, size, seed=seed) for seed, size in enumerate(sizes, start=2))


BOUNDS = pytest.mark.parametrize("lower_bound", [None, -5.0], ids=["Kimi-Linear", "Kimi-K3"])


@BOUNDS
def test_prompts_outputs_states_and_what_is_kept_on_the_way(lower_bound: float | None) -> None:
    made, beta = rows(76), torch.sigmoid(randn(76, HEADS, seed=6))
    states = randn(5, HEADS, VALUE_SIZE, KEY_SIZE, seed=7)
    before = states.clone()
    slots = {"initial_state": states, "initial_state_indices": SLOTS, "cu_seqlens": STARTS}
    parts = [part[None] for part in (*made, beta)]
    gate = {"A_log": A_LOG, "dt_bias": DT_BIAS, "lower_bound": lower_bound}
    output, kept = ours.chunk_kda(*parts, output_intermediate_states=True, **gate, **slots)
    chunks = iter(kept[0])
    for slot, (start, end) in zip(SLOTS.tolist(), pairwise(STARTS.tolist()), strict=True):
        matrices = before[slot].tolist()
        for token in range(start, end):
            if (token - start) % CHUNK_TOKENS == 0:
                torch.testing.assert_close(next(chunks), torch.tensor(matrices).double())
            for head in range(HEADS):
                given = tuple(part[token] for part in made)
                step = float(beta[token, head])
                expected, matrices[head] = stepped(matrices[head], head, given, step, lower_bound)
                assert output[0, token, head].tolist() == pytest.approx(expected)
        torch.testing.assert_close(states[slot], torch.tensor(matrices).double())
    assert next(chunks, None) is None
    assert torch.equal(states[[1, 3]], before[[1, 3]])
    states.copy_(before)
    alone = ours.chunk_kda(*parts, **gate, **slots)
    assert torch.equal(alone, output)


@BOUNDS
def test_the_next_token_makes_its_own_gate_and_step(lower_bound: float | None) -> None:
    made, b = rows(3), randn(3, HEADS, seed=6)
    states = randn(5, HEADS, VALUE_SIZE, KEY_SIZE, seed=7)
    before = states.clone()
    q, k, v, gate = made
    output = ours.fused_sigmoid_gating_delta_rule_update(
        A_LOG,
        DT_BIAS,
        q[None],
        k[None],
        v[None],
        gate.flatten(1),
        b[None],
        initial_state_source=states,
        initial_state_indices=SLOTS.int(),
        cu_seqlens=torch.arange(4),
        lower_bound=lower_bound,
        is_kda=True,
    )
    for row, slot in enumerate(SLOTS.tolist()):
        for head in range(HEADS):
            given = tuple(part[row] for part in made)
            step = sigmoid(float(b[row, head]))
            expected, state = stepped(before[slot, head].tolist(), head, given, step, lower_bound)
            assert output[0, row, head].tolist() == pytest.approx(expected, rel=1e-5)
            torch.testing.assert_close(states[slot, head], torch.tensor(state).double(), rtol=1e-5, atol=1e-6)
    assert torch.equal(states[[1, 3]], before[[1, 3]])


def test_gated_norm() -> None:
    x, weight, gate = (
        randn(1, 4, HEADS, VALUE_SIZE),
        randn(VALUE_SIZE, seed=2),
        randn(4, HEADS, VALUE_SIZE, seed=3),
    )
    output = ours.sigmoid_gated_norm(x, weight, gate, 1e-5)
    for token in range(4):
        for head in range(HEADS):
            row = x[0, token, head].tolist()
            root = math.sqrt(sum(y * y for y in row) / VALUE_SIZE + 1e-5)
            expected = [
                float(weight[i]) * y / root * sigmoid(float(gate[token, head, i])) for i, y in enumerate(row)
            ]
            assert output[0, token, head].tolist() == pytest.approx(expected, rel=1e-5)
