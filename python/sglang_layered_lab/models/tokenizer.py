"""A byte-level BPE tokenizer, trained on the text beside this file: any text encodes, any id decodes."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from sglang_layered.errors import ModelRecipeError
from sglang_layered_lab.models.catalogue import Recipe
from sglang_layered_lab.models.hf_config import SPECIAL_TOKENS, tokenizer_config

CORPUS = Path(__file__).with_name("corpus.txt")
CHAT_TEMPLATE = Path(__file__).with_name("chat_template.jinja")


def train_tokenizer(vocab_size: int) -> Tokenizer:
    """Train on the corpus up to exactly `vocab_size` tokens; the same size gives the same tokenizer."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocab_size < len(alphabet) + len(SPECIAL_TOKENS):
        raise ModelRecipeError(
            f"a vocabulary of {vocab_size} tokens cannot hold every byte and the special tokens"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=1,
        show_progress=False,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=alphabet,
    )
    tokenizer.train_from_iterator([CORPUS.read_text(encoding="utf-8")], trainer)
    num_missing = vocab_size - tokenizer.get_vocab_size()
    tokenizer.add_tokens([AddedToken(f"<|extra_{index}|>", normalized=False) for index in range(num_missing)])
    return tokenizer


def write_tokenizer(recipe: Recipe, folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja into `folder`."""
    train_tokenizer(recipe.vocab_size).save(str(folder / "tokenizer.json"))
    text = json.dumps(tokenizer_config(recipe.max_position_tokens), indent=2) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
    template = CHAT_TEMPLATE.read_text(encoding="utf-8")
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
