"""The CPU references that tests of model families and of several ranks stand on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from sglang_layered_kernels.cpu.reference_attention import attention

ROWS, TOKENS, HEADS, KV_HEADS, DIM = 5, 12, 4, 2, 8


@pytest.fixture
def qkv() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    shapes = [(ROWS, HEADS, DIM), (TOKENS, KV_HEADS, DIM), (TOKENS, KV_HEADS, DIM)]
    query, keys, values = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return query, keys, values


def one_by_one(
    qkv: tuple[torch.Tensor, ...], window: int = -1, cap: float = 0.0, sink: float | None = None
) -> torch.Tensor:
    """Oracle: a row, a head and a key at a time."""
    query, keys, values = qkv
    output = torch.zeros_like(query)
    for row in range(ROWS):
        own = TOKENS - ROWS + row
        first = 0 if window < 0 else max(own - window, 0)
        for head in range(HEADS):
            kv_head = head * KV_HEADS // HEADS
            scores = [float(query[row, head] @ keys[key, kv_head]) * 0.5 for key in range(first, own + 1)]
            if cap:
                scores = [cap * float(torch.tanh(torch.tensor(score / cap))) for score in scores]
            exps = torch.tensor(scores, dtype=torch.float64).exp()
            total = exps.sum() + (0 if sink is None else torch.tensor(sink, dtype=torch.float64).exp())
            output[row, head] = (exps[:, None] * values[first : own + 1, kv_head]).sum(0) / total
    return output


@pytest.mark.parametrize(
    ("window", "cap", "sink"), [(-1, 0.0, None), (3, 0.0, None), (-1, 0.7, None), (3, 0.7, 0.4)]
)
def test_attention_with_windows_caps_and_sinks(
    qkv: tuple[torch.Tensor, ...], window: int, cap: float, sink: float | None
) -> None:
    sinks = None if sink is None else torch.full((HEADS,), sink)
    got = attention(*qkv, scale=0.5, window_left=window, soft_cap=cap, sinks=sinks)
    torch.testing.assert_close(got, one_by_one(qkv, window, cap, sink), atol=1e-6, rtol=0)


def test_adapters_of_latent_attention_add_what_sglangs_kernels_add() -> None:
    script = Path(__file__).with_name("latent_adapters_triton.py")
    env = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, str(script)], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    differences = json.loads(done.stdout.splitlines()[-1])
    assert len(differences) == 4
    assert max(differences) < 1e-6
