"""Requests with a grammar, by which a token depends on all before it, with drafts beside cohorts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from sglang.srt.constrained.base_grammar_backend import BaseGrammarBackend, BaseGrammarObject

from harness import SteppedScheduler
from prompts import prompt

MODULUS, MOST_TOKENS = 5, 30
GRAMMAR = {"regex": "by the sum"}


class BySum(BaseGrammarObject):
    """A token's remainder is that of the sum of all before, or two more; ends after MOST_TOKENS."""

    def __init__(self, tokens: list[int] | None = None) -> None:
        super().__init__()
        self.tokens = list(tokens or ())

    @property
    def _allowed(self) -> set[int]:
        remainder = sum(self.tokens) % MODULUS
        return {remainder, (remainder + 2) % MODULUS}

    def accept_token(self, token: int) -> None:
        if token % MODULUS not in self._allowed:
            raise ValueError(f"{token} after {self.tokens}")
        self.tokens.append(token)

    def rollback(self, k: int) -> None:
        del self.tokens[len(self.tokens) - k :]

    def is_terminated(self) -> bool:
        return len(self.tokens) >= MOST_TOKENS

    def allocate_vocab_mask(self, vocab_size: int, batch_size: int, device: Any) -> torch.Tensor:
        """A bit a token, as SGLang reads them: all allowed."""
        return torch.full((batch_size, -(-vocab_size // 32)), -1, dtype=torch.int32)

    def fill_vocab_mask(self, vocab_mask: torch.Tensor, idx: int) -> None:
        tokens = torch.arange(vocab_mask.shape[1] * 32)
        bits = torch.zeros_like(tokens, dtype=torch.bool)
        for remainder in self._allowed:
            bits |= tokens % MODULUS == remainder
        words = (bits.view(-1, 32).long() << torch.arange(32)).sum(-1)
        vocab_mask[idx] = torch.where(words >= 1 << 31, words - (1 << 32), words).int()

    @staticmethod
    def move_vocab_mask(vocab_mask: torch.Tensor, device: Any) -> torch.Tensor:
        return vocab_mask

    @staticmethod
    def apply_vocab_mask(logits: torch.Tensor, vocab_mask: torch.Tensor) -> None:
        bits = (vocab_mask.unsqueeze(-1) >> torch.arange(32, dtype=torch.int32)) & 1
        logits.masked_fill_(bits.flatten(1)[:, : logits.shape[1]] == 0, float("-inf"))

    def copy(self) -> BySum:
        return BySum()


def follows(tokens: list[int]) -> bool:
    grammar = BySum()
    try:
        for token in tokens:
            grammar.accept_token(token)
    except ValueError:
        return False
    return True


@dataclass
class Constrained:
    """By way: whether all answers follow the grammar; tokens; verified steps and right drafts."""

    legal: dict[str, bool] = field(default_factory=dict)
    tokens: dict[str, list[list[int]]] = field(default_factory=dict)
    drafts: dict[str, list[tuple[int, int]]] = field(default_factory=dict)


def check_grammars(stepped: SteppedScheduler) -> Constrained:
    """Some with a grammar and some without come one after another; one is dropped, all are retracted."""
    backend = BaseGrammarBackend()
    stepped.scheduler.grammar_manager.grammar_backend = backend
    seen = Constrained()
    groups = {"layered_prefill": 1, "layered_num_groups": stepped.num_layers}
    for way, settings in (("stock", {"layered_prefill": 0}), ("groups", groups), ("retracted", groups)):
        stepped.drain()  # which empties the cache
        backend.set_cache(("regex", GRAMMAR["regex"]), BySum())
        assert stepped.change(settings)
        rids, has_grammar = [], []
        for index, length in enumerate((20, 70, 90, 150, 30, 60)):
            has_grammar.append(index != 2)
            sampling = GRAMMAR if has_grammar[-1] else {}
            rids.append(stepped.send(prompt(length, 90_000 + index), 24 + 4 * (index % 3), sampling=sampling))
            stepped.step(3)
            if way == "retracted" and index in (2, 4):
                stepped.pause("retract")
                stepped.resume()
        tokens = stepped.finish(*rids)
        constrained = [one for one, is_so in zip(tokens, has_grammar, strict=True) if is_so]
        seen.legal[way] = all(map(follows, constrained))
        seen.tokens[way] = tokens
        reqs = [stepped.reqs[rid] for rid in rids]
        seen.drafts[way] = [(req.spec_verify_ct, req.spec_num_correct_drafts) for req in reqs]
    stepped.drain()
    return seen
