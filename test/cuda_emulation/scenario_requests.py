"""What the requests of every run ask for."""

from __future__ import annotations

import random

VOCAB = 1000


def _prompt(num_tokens: int, seed: int) -> list[int]:
    return random.Random(seed).choices(range(3, VOCAB), k=num_tokens)


Asked = list[tuple[list[int], int]]  # prompts and how many tokens to answer
SHORT: Asked = [(_prompt(12 + 9 * index, 400 + index), 12) for index in range(3)]
OVERTAKER: Asked = [(_prompt(64, 420), 4)]  # so many rows that graphs of a group take them
LONG: Asked = [(_prompt(300, 410), 4)]
