"""What a call means, by sets and Counters; and random calls. Imports neither torch nor the kernels."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Call:
    """One call of one layer; `rows` are lists of ids."""

    layer: int
    rows: list[list[int]]
    num_prompt_rows: int


@dataclass
class LayerOracle:
    num_calls: int = 0
    num_prompt_calls: int = 0
    num_decode_calls: int = 0
    prompt_experts: int = 0
    decode_experts: int = 0
    union_experts: int = 0
    prompt_tokens: Counter[int] = field(default_factory=Counter)
    decode_tokens: Counter[int] = field(default_factory=Counter)

    def add(self, call: Call) -> None:
        prompt = [expert for row in call.rows[: call.num_prompt_rows] for expert in row if expert >= 0]
        decode = [expert for row in call.rows[call.num_prompt_rows :] for expert in row if expert >= 0]
        self.num_calls += 1
        self.num_prompt_calls += bool(prompt)
        self.num_decode_calls += bool(decode)
        self.prompt_experts += len(set(prompt))
        self.decode_experts += len(set(decode))
        self.union_experts += len({*prompt, *decode})
        self.prompt_tokens.update(prompt)
        self.decode_tokens.update(decode)

    def document(self, num_experts: int) -> dict[str, int | list[int]]:
        """As `read_layer` returns it."""
        plain = {name: value for name, value in vars(self).items() if isinstance(value, int)}
        tokens = {name: value for name, value in vars(self).items() if isinstance(value, Counter)}
        return {**plain, **{name: [n[e] for e in range(num_experts)] for name, n in tokens.items()}}


def expected(calls: list[Call], num_layers: int, num_experts: int) -> list[dict[str, int | list[int]]]:
    layers = [LayerOracle() for _ in range(num_layers)]
    for call in calls:
        layers[call.layer].add(call)
    return [layer.document(num_experts) for layer in layers]


def read_layer(traffic: object, layer: int) -> dict[str, int | list[int]]:
    """One layer of an ExpertTraffic, as the oracle writes it."""
    return {name: array[layer].tolist() for name, array in vars(traffic).items()}


def random_call(rng: random.Random, num_layers: int, num_experts: int, top_k: int, max_rows: int) -> Call:
    """A call with a random share of padding, few or many experts, repeats inside rows, any cut."""
    num_rows = rng.choice([0, 1, rng.randint(0, max_rows), max_rows])
    padding = rng.choice([0.0, 0.0, 0.3, 1.0])
    favourites = rng.sample(range(num_experts), rng.randint(1, num_experts))
    rows = [
        [rng.choice([-1, -7]) if rng.random() < padding else rng.choice(favourites) for _ in range(top_k)]
        for _ in range(num_rows)
    ]
    cut = rng.choice([0, num_rows, rng.randint(0, num_rows)])
    return Call(rng.randrange(num_layers), rows, cut)
