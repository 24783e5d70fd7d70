"""Independent streams of random numbers: each purpose, repetition and request has its own."""

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """What random numbers are for. Values are part of the seeds: never renumber them."""

    ARRIVALS = 0
    LENGTHS = 1
    CONTENT = 2
    PREFIX_CHOICE = 3
    PREFIX_CONTENT = 4
    BACKGROUND = 5
    TOPIC = 6
    ARM_ORDER = 7


def generator(seed: int, stream: Stream, *indices: int) -> np.random.Generator:
    """Return a fresh generator; equal arguments give equal numbers, with the same version of numpy.

    The spawn key is what `SeedSequence.spawn` would give to the child of that place, so no stream depends on
    how many others there are.
    """
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(int(stream), *indices)))
