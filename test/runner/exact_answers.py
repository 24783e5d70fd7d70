"""What the exact model answers: arithmetic of integers, and a request's answer by its definition."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

PRIME = 2**31 - 1
VOCAB = 1024
FIRST_TOKEN = 3


def embed(token: Any, position: Any) -> Any:
    return (token * 1_000_003 + position * 7_919 + 17) % PRIME


def kv_value(hidden: Any, layer: int) -> Any:
    return (hidden * 48_271 + layer * 7 + 1) % PRIME


def mix(hidden: Any, residual: Any, attention: Any, layer: int) -> Any:
    return (hidden * hidden + 3 * attention + residual + layer + 1) % PRIME


def next_token(hidden: Any) -> Any:
    return hidden % (VOCAB - FIRST_TOKEN) + FIRST_TOKEN


def token_by_token(prompt: Sequence[int], num_new_tokens: int, num_layers: int) -> list[int]:
    """Definition: token by token and layer by layer, with one running sum a layer for the KV cache."""
    tokens, sums = list(prompt), [0] * num_layers
    for position in range(len(prompt) + num_new_tokens - 1):
        answered = _after(tokens[position], position, sums)
        if position >= len(prompt) - 1:
            tokens.append(answered)
    return tokens[len(prompt) :]


def expected_tokens(prompt: Sequence[int], num_new_tokens: int, num_layers: int) -> list[int]:
    """Oracle: the same, with all rows of the prompt at once in each layer; ten times as fast."""
    positions, sums = np.arange(len(prompt)), []
    hidden, residual = embed(np.array(prompt), positions), 0
    for layer in range(num_layers):
        read = np.cumsum((positions + 1) * kv_value(hidden, layer))
        hidden, residual = mix(hidden, residual, read % PRIME, layer), hidden
        sums.append(int(read[-1]))
    answered = [int(next_token(hidden[-1]))]
    for position in range(len(prompt), len(prompt) + num_new_tokens - 1):
        answered.append(_after(answered[-1], position, sums))
    return answered


def _after(token: int, position: int, sums: list[int]) -> int:
    """The token after this one; from now on the sums hold its row, too."""
    hidden, residual = embed(token, position), 0
    for layer in range(len(sums)):
        sums[layer] += (position + 1) * kv_value(hidden, layer)
        hidden, residual = mix(hidden, residual, sums[layer] % PRIME, layer), hidden
    return int(next_token(hidden))
