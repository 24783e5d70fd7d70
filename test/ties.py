"""Ties between two experts: a router takes one of two that it finds equally good, by how it rounds.

Rounding depends on the rows beside, and the other expert gives other numbers from that layer on, so a token
much later may differ without being close to a second one itself. Hugging Face's model says where a prompt
meets ties, and what it answers when they fall the other way; prompts without ties have one answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, DynamicCache

TIE_LOGIT = 1e-5  # between the last expert that is taken and the first that is not; rounding is about 1e-6
MOST_WORLDS = 24
FAR_LOGIT = 1e-4  # adapters round worst: 4e-5 was seen to fall either way
BLOCK = 256  # tokens of a prompt that are looked at together
MOST_TIES = 60  # of a block that is changed until it has none

Tie = tuple[int, int]  # layer, position
Tokens = tuple[int, ...]


class TiedModel:
    """A mixture of experts on the CPU in float32 whose ties can be made to fall the other way."""

    def __init__(self, model: Path | torch.nn.Module) -> None:
        if isinstance(model, Path):
            model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        self._model: Any = model.eval()
        self._routers = {
            index: router
            for index, layer in enumerate(self._model.model.layers)
            for name in ("gate", "router")
            if (router := getattr(layer.mlp, name, None)) is not None
        }

    def answers(self, prompt: Sequence[int], quiet: Sequence[int]) -> frozenset[Tokens]:
        """What may be said instead of `quiet`, the answer of a quiet server, when ties fall otherwise.

        Where one falls otherwise, later positions see other numbers and may meet ties of their own.
        """
        found: set[Tokens] = set()
        worlds: list[frozenset[Tie]] = [frozenset()]
        for swapped in worlds:  # it grows
            answer = self.greedy(prompt, len(quiet), swapped)
            found.add(answer)
            others = [swapped | {tie} for tie in self.ties([*prompt, *answer], swapped=swapped)]
            worlds += [other for other in others if other not in worlds][: MOST_WORLDS - len(worlds)]
        return frozenset(found - {tuple(quiet)})

    @torch.inference_mode()
    def ties(
        self, tokens: Sequence[int], within: float = TIE_LOGIT, swapped: Iterable[Tie] = ()
    ) -> list[Tie]:
        """Where two experts are as good as equal."""
        with self._swapping(swapped), self._looking(within) as found:
            self._model(torch.tensor([tokens]))
        return found

    @torch.inference_mode()
    def greedy(self, prompt: Sequence[int], num_outputs: int, swapped: Iterable[Tie] = ()) -> Tokens:
        """The greedy answer when these ties fall the other way."""
        tokens = list(prompt)
        with self._swapping(swapped):
            for _ in range(num_outputs):
                tokens.append(int(self._model(torch.tensor([tokens])).logits[0, -1].argmax()))
        return tuple(tokens[len(prompt) :])

    @torch.inference_mode()
    def untied(self, prompt: Tokens, num_outputs: int) -> Tokens:
        """The prompt, with other tokens wherever it or its answer comes near a tie.

        The same start is changed in the same way, so prompts with a common one keep it.
        """
        if not self._routers:
            return prompt
        tokens, blocks, last = list(prompt), range(0, len(prompt) - 1, BLOCK), len(prompt) - 1
        cache = DynamicCache(config=self._model.config)
        for start in blocks:
            block = slice(start, min(start + BLOCK, last))
            cache = self._clear(tokens, block, cache)
        for _ in range(MOST_TIES):
            near, _ = self._near(tokens[last:], cache, num_outputs)
            if near is None:
                return tuple(tokens)
            tokens[last] = _other(tokens[last])
        raise AssertionError(
            f"the answer to a prompt of {len(prompt)} tokens has ties whatever its last token is"
        )

    def _clear(self, tokens: list[int], block: slice, cache: DynamicCache) -> DynamicCache:
        """Change tokens of a block until it is far from ties; the cache with this block."""
        for _ in range(MOST_TIES):
            near, longer = self._near(tokens[block], cache, 1)
            if near is None:
                return longer
            tokens[block.start + near] = _other(tokens[block.start + near])
        raise AssertionError(f"tokens {block} have ties whatever they are")

    def _near(
        self, tokens: Sequence[int], before: DynamicCache, num_steps: int
    ) -> tuple[int | None, DynamicCache]:
        """Where these tokens, or those that are answered in further steps, first come near a tie."""
        cache, step, start = deepcopy(before), torch.tensor([tokens]), 0
        for _ in range(num_steps):
            with self._looking(FAR_LOGIT) as found:
                logits = self._model(step, past_key_values=cache, use_cache=True).logits
            if found:
                return start + min(position for _, position in found), cache
            start, step = start + step.shape[1], logits[:, -1:].argmax(-1)
        return None, cache

    @contextmanager
    def _looking(self, within: float) -> Iterator[list[Tie]]:
        found: list[Tie] = []

        def look(layer: int) -> Callable[[Any, Any, Any], None]:
            def hook(_: Any, __: Any, output: Any) -> None:
                logits, _, experts = output
                best = logits.topk(experts.shape[1] + 1, dim=-1).values
                close = best[:, -2] - best[:, -1] < within
                found.extend((layer, int(position)) for position in close.nonzero())

            return hook

        with self._hooked([(layer, look(layer)) for layer in self._routers]):
            yield found

    def _swapping(self, ties: Iterable[Tie]) -> Any:
        return self._hooked([(layer, _swap_at(position)) for layer, position in ties])

    @contextmanager
    def _hooked(self, hooks: Iterable[tuple[int, Callable[[Any, Any, Any], Any]]]) -> Iterator[None]:
        with ExitStack() as stack:
            for layer, hook in hooks:
                stack.callback(self._routers[layer].register_forward_hook(hook).remove)
            yield


def _other(token: int) -> int:
    return 3 + (token - 2) % 997


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
