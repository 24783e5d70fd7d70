"""Text of about a given number of tokens: random words that a tokenizer takes for one token each."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from sglang_layered_lab.bench.spec_errors import SpecError

MAX_WORDS = 2048
MIN_WORDS = 8
MAX_TRIES = 4


class Tokenizer(Protocol):
    """What is needed of a Hugging Face tokenizer."""

    def encode(self, text: str, *, add_special_tokens: bool) -> Sequence[int]:
        """Token ids of a text."""
        ...

    def decode(self, token_ids: Any) -> str:
        """Text of token ids."""
        ...


@dataclass(frozen=True)
class Words:
    """Words of a tokenizer, each one token behind another word."""

    tokenizer: Tokenizer
    words: tuple[str, ...]

    @classmethod
    def of(cls, tokenizer: Tokenizer, low: int, high: int) -> "Words":
        """Search token ids [low, high), spread over the range, for up to MAX_WORDS words of ASCII letters.

        Raises:
            SpecError: there are fewer than MIN_WORDS.
        """
        words: dict[str, None] = {}
        for token in np.random.default_rng(0).permutation(np.arange(low, high)).tolist():
            word = tokenizer.decode([token]).strip()
            if word.isascii() and word.isalpha() and _adds_one_token(tokenizer, word):
                words[word] = None
            if len(words) == MAX_WORDS:
                break
        if len(words) < MIN_WORDS:
            has = f"the tokenizer has {len(words)} among ids {low} to {high - 1}"
            needs = f"'text' needs {MIN_WORDS} words of one token, {has}"
            raise SpecError("workload.inputs", f"{needs}; use 'ids', or give another workload.vocab")
        return cls(tokenizer, tuple(words))

    def text_of(self, shared: Sequence[int], own: Sequence[int], num_tokens: int) -> tuple[str, int]:
        """Join the words of these indices, and take or leave some of `own` until the tokens are `num_tokens`.

        Returns the text and its tokens. A short text may have more tokens than asked for: the first word has
        no space before it and may be several, and one word of `own` always stays.
        """
        num_own = len(own)
        for _ in range(MAX_TRIES):
            chosen = [*shared, *(own[each % len(own)] for each in range(num_own))]
            text = " ".join(self.words[each] for each in chosen)
            counted = _count(self.tokenizer, text)
            if counted == num_tokens or num_own + num_tokens - counted < 1:
                break
            num_own += num_tokens - counted
        return text, counted


def _count(tokenizer: Tokenizer, text: str) -> int:
    return len(tokenizer.encode(text, add_special_tokens=False))


def _adds_one_token(tokenizer: Tokenizer, word: str) -> bool:
    return _count(tokenizer, f"{word} {word} {word}") - _count(tokenizer, f"{word} {word}") == 1
