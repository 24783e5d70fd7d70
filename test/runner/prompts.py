"""Prompts for stepped tests, and what a request answers when nothing is beside it."""

import random

from harness import SteppedScheduler

VOCAB = 1000


def prompt(num_tokens: int, seed: int) -> list[int]:
    return random.Random(seed).choices(range(3, VOCAB), k=num_tokens)


def alone(stepped: SteppedScheduler, tokens: list[int], num_outputs: int) -> list[int]:
    """Oracle: the same request with nothing beside it and no cache."""
    [output] = stepped.finish(stepped.send(tokens, num_outputs))
    stepped.drain()
    return output
