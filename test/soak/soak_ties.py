"""Answers that a tie between two experts allows: a router takes one of two that it finds equally good.

The other expert gives other numbers from that layer on, so a token much later may differ without being close
to a second one itself. Hugging Face's model says where a prompt meets such ties, and what it answers when
they fall the other way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

TIE_LOGIT = 1e-5  # between the last expert that is taken and the first that is not; rounding is about 1e-6
MOST_TIES, MOST_AT_ONCE = 6, 2

Tie = tuple[int, int]  # layer, position


class TiedModel:
    """A mixture of experts on the CPU in float32 whose ties can be made to fall the other way."""

    def __init__(self, folder: Path) -> None:
        self._model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        layers = enumerate(self._model.model.layers)
        self._routers = {index: layer.mlp.gate for index, layer in layers if hasattr(layer.mlp, "gate")}

    def answers(self, prompt: Sequence[int], quiet: Sequence[int]) -> frozenset[tuple[int, ...]]:
        """What may be said instead of `quiet`, the answer of a quiet server, when ties fall otherwise."""
        ties = self.ties([*prompt, *quiet])[:MOST_TIES]
        sizes = range(1, MOST_AT_ONCE + 1)
        chosen = chain.from_iterable(combinations(ties, size) for size in sizes)
        return frozenset(self.greedy(prompt, len(quiet), swapped) for swapped in chosen)

    def ties(self, tokens: Sequence[int]) -> list[Tie]:
        """Where two experts are as good as equal."""
        found: list[Tie] = []

        def look(layer: int) -> Callable[[Any, Any, Any], None]:
            def hook(router: Any, _: Any, output: Any) -> None:
                logits, _, experts = output
                best = logits.topk(experts.shape[1] + 1, dim=-1).values
                close = best[:, -2] - best[:, -1] < TIE_LOGIT
                found.extend((layer, int(position)) for position in close.nonzero())

            return hook

        with ExitStack() as hooks, torch.inference_mode():
            for layer, router in self._routers.items():
                hooks.callback(router.register_forward_hook(look(layer)).remove)
            self._model(torch.tensor([tokens]))
        return found

    def greedy(self, prompt: Sequence[int], num_outputs: int, swapped: Iterable[Tie] = ()) -> tuple[int, ...]:
        """The greedy answer when these ties fall the other way."""
        tokens = list(prompt)
        with ExitStack() as hooks, torch.inference_mode():
            for layer, position in swapped:
                hook = self._routers[layer].register_forward_hook(_swap_at(position))
                hooks.callback(hook.remove)
            for _ in range(num_outputs):
                tokens.append(int(self._model(torch.tensor([tokens])).logits[0, -1].argmax()))
        return tuple(tokens[len(prompt) :])


def _swap_at(position: int) -> Callable[[Any, Any, Any], Any]:
    """At this position the first expert that was not taken stands in for the last that was."""

    def hook(_: Any, __: Any, output: Any) -> Any:
        logits, weights, experts = output
        if position >= len(logits):
            return output
        *_, last, instead = logits[position].topk(experts.shape[1] + 1).indices.tolist()
        experts = experts.clone()
        experts[position] = torch.where(experts[position] == last, instead, experts[position])
        return logits, weights, experts

    return hook
