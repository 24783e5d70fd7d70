"""The CPU references of Mamba2 and of experts without gates against their definitions, number by number."""

from __future__ import annotations

import math

import pytest
import torch
from sglang_layered_kernels.cpu import mamba2 as ours
from sglang_layered_kernels.cpu.plain_experts import plain_experts, wide_product

LENGTHS, STARTS = (3, 21, 8), torch.tensor([0, 3, 24, 32])
HEADS, GROUPS, SIZE, STATE_SIZE, CHUNK_TOKENS = 4, 2, 3, 5, 8
SLOTS = torch.tensor([4, 0, 2])


def randn(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


A, D, BIAS = -randn(HEADS, seed=11).abs(), randn(HEADS, seed=12), randn(HEADS, seed=13)


def scanned(
    x: list[list[float]],
    dt: list[float],
    b: list[list[float]],
    c: list[list[float]],
    head: int,
    state: list[list[float]],
) -> tuple[list[list[float]], list[list[list[float]]]]:
    """Oracle: outputs of one head, and its state before the first token and after each."""
    outputs, states = [], [state]
    for token in range(len(x)):
        step = math.log1p(math.exp(dt[token] + float(BIAS[head])))
        decay = math.exp(step * float(A[head]))
        state = [
            [decay * state[i][j] + step * x[token][i] * b[token][j] for j in range(STATE_SIZE)]
            for i in range(SIZE)
        ]
        states.append(state)
        outputs.append(
            [
                sum(state[i][j] * c[token][j] for j in range(STATE_SIZE)) + float(D[head]) * x[token][i]
                for i in range(SIZE)
            ]
        )
    return outputs, states


def rows(num_rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    return (
        randn(num_rows, HEADS, SIZE),
        randn(num_rows, HEADS, seed=2),
        randn(num_rows, GROUPS, STATE_SIZE, seed=3),
        randn(num_rows, GROUPS, STATE_SIZE, seed=4),
    )


def of_head(parts: tuple[torch.Tensor, ...], head: int, own: slice) -> list[list]:
    x, dt, b, c = parts
    group = head * GROUPS // HEADS
    return [x[own, head].tolist(), dt[own, head].tolist(), b[own, group].tolist(), c[own, group].tolist()]


@pytest.mark.parametrize("is_resumed", [True, False])
def test_scan_of_prompts_from_their_states(is_resumed: bool) -> None:
    parts = rows(32)
    x, dt, b, c = (part[None] for part in parts)
    first = randn(3, HEADS, SIZE, STATE_SIZE, seed=5) if is_resumed else None
    out = torch.full_like(x, math.nan)
    kept, last = ours.mamba_chunk_scan_combined(
        x,
        dt,
        A,
        b,
        c,
        chunk_size=CHUNK_TOKENS,
        D=D,
        dt_bias=BIAS,
        cu_seqlens=STARTS,
        out=out,
        initial_states=first,
        state_dtype=torch.float64,
    )
    assert kept.shape == (1, 4, HEADS, SIZE, STATE_SIZE)
    for index, (start, length) in enumerate(zip(STARTS.tolist(), LENGTHS, strict=False)):
        own = slice(start, start + length)
        before = torch.zeros(HEADS, SIZE, STATE_SIZE) if first is None else first[index]
        for head in range(HEADS):
            outputs, states = scanned(*of_head(parts, head, own), head, before[head].tolist())
            torch.testing.assert_close(out[0, own, head], torch.tensor(outputs).double())
            torch.testing.assert_close(last[index, head], torch.tensor(states[-1]).double())
            for chunk in range(4):  # counted over all prompts, as SGLang's kernel does
                if start <= chunk * CHUNK_TOKENS < start + length:
                    expected = torch.tensor(states[chunk * CHUNK_TOKENS - start]).double()
                    torch.testing.assert_close(kept[0, chunk, head], expected)


def test_next_token_of_every_request() -> None:
    parts, state = rows(3), randn(5, HEADS, SIZE, STATE_SIZE, seed=5)
    x, dt, b, c = parts
    before, out = state.clone(), torch.full_like(x, math.nan)
    ours.selective_state_update(
        state,
        x,
        dt[:, :, None].expand(-1, -1, SIZE),
        A[:, None, None].expand(-1, SIZE, STATE_SIZE),
        b,
        c,
        D[:, None].expand(-1, SIZE),
        z=None,
        dt_bias=BIAS[:, None].expand(-1, SIZE),
        dt_softplus=True,
        state_batch_indices=SLOTS.int(),
        out=out,
    )
    for row, slot in enumerate(SLOTS.tolist()):
        for head in range(HEADS):
            own = of_head(parts, head, slice(row, row + 1))
            [expected], (_, after) = scanned(*own, head, before[slot, head].tolist())
            assert out[row, head].tolist() == pytest.approx(expected)
            torch.testing.assert_close(state[slot, head], torch.tensor(after).double())
    assert torch.equal(state[[1, 3]], before[[1, 3]])


def test_experts_without_gates() -> None:
    x, up, down = randn(3, 4), randn(5, 6, 4, seed=2), randn(5, 4, 6, seed=3)
    weights, chosen = randn(3, 2, seed=4), torch.tensor([[0, 4], [4, 1], [2, 4]])
    output = plain_experts(x, up, down, weights, chosen, factor=2.5)
    for row in range(3):
        expected = [0.0] * 4
        for place, expert in enumerate(chosen[row].tolist()):
            hidden = [
                max(sum(float(up[expert, i, j] * x[row, j]) for j in range(4)), 0) ** 2 for i in range(6)
            ]
            for j in range(4):
                part = sum(float(down[expert, j, i]) * hidden[i] for i in range(6))
                expected[j] += 2.5 * float(weights[row, place]) * part
        assert output[row].tolist() == pytest.approx(expected)


def test_product_in_a_wider_type() -> None:
    left, right = randn(2, 3).bfloat16(), randn(3, 2, seed=2).bfloat16()
    output = wide_product(left, right, torch.float32)
    assert output.dtype == torch.float32
    assert float(output[1, 0]) == pytest.approx(sum(float(left[1, i]) * float(right[i, 0]) for i in range(3)))
