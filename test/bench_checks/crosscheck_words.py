"""A tokenizer in which every token is a word, for a server that tools who read text are to time.

With a byte-level tokenizer a token may be part of a character: the server then sends no new text, and a tool
that counts text sees the token with a later one, or never. Here each token is a word of its own and text
turns back into the same tokens.
"""

from __future__ import annotations

from pathlib import Path
from string import ascii_lowercase
from typing import Any

from sglang_layered.errors import BenchError
from sglang_layered_lab.bench.workload_text import Tokenizer

LETTERS = 4
MAX_WORDS = len(ascii_lowercase) ** LETTERS


def word_of(token: int) -> str:
    """The word of a token id: its number in base 26, in letters."""
    letters = ""
    for _ in range(LETTERS):
        token, letter = divmod(token, len(ascii_lowercase))
        letters = ascii_lowercase[letter] + letters
    return letters


def make_word_tokenizer(vocab_size: int, folder: Path) -> Tokenizer:
    """Write the tokenizer's folder, as `--tokenizer-path` takes it, and return the tokenizer.

    It has no special token: the server would leave those out of the text.

    Raises:
        BenchError: there are not that many words.
    """
    from tokenizers import Tokenizer as Made
    from tokenizers import models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    if vocab_size > MAX_WORDS:
        raise BenchError(f"{vocab_size} token ids need as many words, and there are {MAX_WORDS}")
    made = Made(
        models.WordLevel({word_of(token): token for token in range(vocab_size)}, unk_token=word_of(0))
    )
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer: Any = PreTrainedTokenizerFast(tokenizer_object=made)
    tokenizer.save_pretrained(folder)
    return tokenizer  # type: ignore[no-any-return]
