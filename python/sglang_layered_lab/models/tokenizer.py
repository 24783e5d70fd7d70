"""A byte-level BPE tokenizer, trained on the text beside this file: any text encodes, any id decodes."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from sglang_layered.errors import ModelRecipeError
from sglang_layered_lab.models.processor import named_tokens
from sglang_layered_lab.models.recipe import END_TOKEN, PAD_TOKEN, SPECIAL_TOKENS, START_TOKEN, Recipe

CORPUS = Path(__file__).with_name("corpus.txt")
CHAT_TEMPLATE = Path(__file__).with_name("chat_template.jinja")
VISION_TEMPLATE = CHAT_TEMPLATE.with_name("chat_template_vision.jinja")


def train_tokenizer(vocab_size: int, named: Mapping[int, str] | None = None) -> Tokenizer:
    """Train on the corpus up to exactly `vocab_size` tokens; the same arguments give the same tokenizer.

    `named` are ids that have names of their own; what is learned ends before the lowest of them.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    named = named or {}
    learned_size = min(named, default=vocab_size)
    if learned_size < len(alphabet) + len(SPECIAL_TOKENS):
        raise ModelRecipeError(
            f"a vocabulary of {vocab_size} tokens cannot hold every byte and the special tokens"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=learned_size,
        min_frequency=1,
        show_progress=False,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=alphabet,
    )
    tokenizer.train_from_iterator([CORPUS.read_text(encoding="utf-8")], trainer)
    first = tokenizer.get_vocab_size()
    for index in range(first, vocab_size):
        if index in named:
            tokenizer.add_special_tokens([AddedToken(named[index], normalized=False, special=True)])
        else:
            tokenizer.add_tokens([AddedToken(f"<|extra_{index - first}|>", normalized=False)])
    return tokenizer


def write_tokenizer(recipe: Recipe, folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja into `folder`."""
    named = named_tokens(recipe)
    train_tokenizer(recipe.vocab_size, named).save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": END_TOKEN,
        "pad_token": PAD_TOKEN,
        "additional_special_tokens": [START_TOKEN],
        "clean_up_tokenization_spaces": False,
        "model_max_length": recipe.max_position_tokens,
    }
    if getattr(recipe, "model_type", "") == "qwen2":  # transformers' class of its tokenizer would add one
        config["unk_token"] = None
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    shutil.copyfile(VISION_TEMPLATE if named else CHAT_TEMPLATE, folder / CHAT_TEMPLATE.name)
