"""How much of everything that takes time is in a step. Pure; it knows no seconds."""

from __future__ import annotations

from functools import lru_cache

from sglang_layered.core.pacing import ModelSizes, StepLoad

Amounts = tuple[float, ...]  # one of each of NAMES; Python's own floats: so few are faster without numpy

NAMES = (
    "step",  # 1 a step
    "weights",  # part of the model's experts that is read; 1 for a dense model
    "decode_rows",
    "decode_tokens",  # context of all decode rows
    "prompt_rows",  # times the part of the layers that they run
    "prompt_pairs",  # of a prompt row and a token it sees, times that part
    "prompt_layers",  # that part itself: launches
    "apart_layers",  # that part where the prompt rows run in a forward of their own
)


def amounts(sizes: ModelSizes, load: StepLoad) -> Amounts:
    """What is in the step."""
    at_rest, a_layer = lines(sizes, load)
    count = load.prompt_layers
    if not count:
        return at_rest
    return tuple([once + count * each for once, each in zip(at_rest, a_layer, strict=True)])


def lines(sizes: ModelSizes, load: StepLoad) -> tuple[Amounts, Amounts]:
    """Amounts of the step without prompt layers, and what each prompt layer adds."""
    decode_rows = load.decode_rows
    decode = coverage(sizes, decode_rows)
    at_rest = (1.0, decode, float(decode_rows), float(load.decode_tokens), 0.0, 0.0, 0.0, 0.0)
    return at_rest, _a_layer(sizes, decode_rows, load.prompt_lens, load.prefix_lens, load.is_apart)


@lru_cache(maxsize=64)  # a cohort asks the same in all its steps
def _a_layer(
    sizes: ModelSizes,
    decode_rows: int,
    prompt_lens: tuple[int, ...],
    prefix_lens: tuple[int, ...],
    is_apart: bool,
) -> Amounts:
    rows = sum(prompt_lens)
    if not rows:
        return (0.0,) * len(NAMES)
    together = coverage(sizes, decode_rows + rows) - coverage(sizes, decode_rows)
    added = coverage(sizes, rows) if is_apart else together
    prefixes = prefix_lens or (0,) * len(prompt_lens)
    pairs = sum(_pairs(sizes, *each) for each in zip(prompt_lens, prefixes, strict=True))
    part = 1 / sizes.num_layers
    return (0.0, added * part, 0.0, 0.0, rows * part, pairs * part, part, is_apart * part)


def coverage(sizes: ModelSizes, num_rows: int) -> float:
    """Part of a layer's experts that rows read when each chooses its experts uniformly."""
    if not num_rows:
        return 0.0
    if not sizes.num_experts:
        return 1.0
    return 1 - (1 - sizes.num_experts_per_token / sizes.num_experts) ** num_rows


def _pairs(sizes: ModelSizes, rows: int, before: int) -> float:
    return (before + rows) ** 2 / 2 if sizes.is_padded else rows * (before + rows / 2)
