"""Topics: the ranges of token ids that a model with calibrated routers treats alike. Knows no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeAlias

from sglang_layered.errors import ModelRecipeError

RECORD_NAME = "router_bias.json"
TokenRange: TypeAlias = tuple[int, int]  # half-open range of token ids


def plan_topics(vocab_size: int, num_topics: int) -> tuple[TokenRange, ...]:
    """Cut the usable token ids into equal ranges; ids that are left over belong to no topic.

    Both ends of the vocabulary stay out: that is where tokenizers keep their special tokens.
    """
    first, end = vocab_size // 8, vocab_size * 7 // 8
    size = (end - first) // num_topics if num_topics > 0 else 0
    if size < 1:
        raise ModelRecipeError(f"--topics {num_topics!r} must be between 1 and {end - first} for this model")
    return tuple((first + index * size, first + (index + 1) * size) for index in range(num_topics))


def topics_of(model_dir: Path | str) -> tuple[TokenRange, ...] | None:
    """Return the topics of a calibrated model, or None for any other folder."""
    path = Path(model_dir) / RECORD_NAME
    try:
        ranges = json.loads(path.read_text(encoding="utf-8"))["bias"]["topics"]
        return tuple((int(first), int(end)) for first, end in ranges)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelRecipeError(f"{path} is not a record of calibrate-router: {error!r}") from error
