"""Topics: the ranges of token ids that a model with calibrated routers treats alike. Knows no torch."""

import json
from pathlib import Path
from typing import Any, TypeAlias

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
    record = read_record(model_dir)
    return None if record is None else tuple((first, end) for first, end in record["bias"]["topics"])


def read_record(model_dir: Path | str) -> dict[str, Any] | None:
    """Return what `calibrate-router` says of a folder that it made, or None for any other folder.

    Raises:
        ModelRecipeError: the record in the folder cannot be read.
    """
    path = Path(model_dir) / RECORD_NAME
    try:
        record = dict(json.loads(path.read_text(encoding="utf-8")))
        record["bias"]["topics"]
        return record
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelRecipeError(f"{path} is not a record of calibrate-router: {error!r}") from error
