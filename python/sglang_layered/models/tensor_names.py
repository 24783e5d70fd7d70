"""What a parameter belongs to, from its name: a decoder layer, and there its routed experts or the rest."""

from __future__ import annotations

import re

LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.(.+)$")
EXPERT = re.compile(r"(?:^|\.)experts\.(?:(\d+)\.)?")


def layer_of(name: str) -> int | None:
    """The decoder layer that a parameter belongs to, or None."""
    match = LAYER.search(name)
    return int(match[1]) if match is not None else None


def is_expert(name: str) -> bool:
    """Whether a parameter is part of routed experts."""
    return EXPERT.search(name) is not None


def expert_of(name: str) -> int | None:
    """The number of the expert where each is a module of its own, or None where one tensor has them all."""
    match = EXPERT.search(name)
    return int(match[1]) if match is not None and match[1] else None
