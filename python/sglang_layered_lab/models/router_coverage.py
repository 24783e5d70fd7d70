"""Expert coverage: which experts a step's tokens touch together. Pure arrays; knows no model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sglang_layered_lab.models.router_bias import Bools, Floats
from sglang_layered_lab.models.router_targets import DECODE, CoverageTarget

MAX_DRAWS = 48
# Of each array of RouterStates, the axis of the groups; that of the tokens comes next.
GROUP_AXES: Mapping[str, int] = {"own_logits": 1, "channel": 1, "chosen": 1, "tokens": 0}


@dataclass(frozen=True, slots=True)
class RouterStates:
    """What routers saw and chose for groups of tokens: the requests of a decode step, or a whole prompt."""

    own_logits: Floats  # [layers, groups, tokens, experts], without the reserved channels
    channel: Floats  # [layers, groups, tokens]: what a router reads from the channel that is always set
    chosen: Bools  # [layers, groups, tokens, experts]
    tokens: npt.NDArray[np.int64]  # [groups, tokens], ids

    def turned(self) -> "RouterStates":
        """Swap groups and tokens."""
        return self._each(lambda array, axis: array.swapaxes(axis, axis + 1))

    def windows(self, num_tokens: int) -> "RouterStates":
        """Keep one window of each group; where it lies goes on from group to group."""
        groups = np.arange(self.tokens.shape[0])[:, None]
        places = groups % (self.tokens.shape[1] // num_tokens) * num_tokens + np.arange(num_tokens)
        return self._each(lambda array, axis: array[(slice(None),) * axis + (groups, places)])

    def _each(self, change: Callable[[Any, int], Any]) -> "RouterStates":
        return RouterStates(**{name: change(getattr(self, name), axis) for name, axis in GROUP_AXES.items()})


def join(parts: Sequence[RouterStates]) -> RouterStates:
    """Put the groups of several recordings one after the other."""
    return RouterStates(
        **{
            name: np.concatenate([getattr(part, name) for part in parts], axis=axis)
            for name, axis in GROUP_AXES.items()
        }
    )


class Draw(NamedTuple):
    """Tokens that one step computes together: a group, and places in it."""

    group: int
    tokens: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Coverage:
    """Part of a layer's experts that a draw touches."""

    mean: float  # over layers and draws
    std: float  # between draws, each the mean over its layers
    by_layer: tuple[float, ...]  # mean over draws


def choose(logits: Floats, num_chosen: int) -> Bools:
    """Mark the `num_chosen` highest along the last axis."""
    return np.asarray(logits >= np.partition(logits, -num_chosen, axis=-1)[..., -num_chosen, None])


def draws_for(target: CoverageTarget, states: RouterStates, seed: int) -> tuple[Draw, ...]:
    """Draw what a target speaks of.

    Decode rows are requests drawn without repeat from one step; prompt tokens are windows side by side.
    """
    num_groups, num_tokens = states.tokens.shape
    size = target.num_tokens
    if target.kind == DECODE:
        generator = np.random.default_rng([seed, size])
        return tuple(
            Draw(index % num_groups, generator.permutation(num_tokens)[:size]) for index in range(MAX_DRAWS)
        )
    starts = range(0, num_tokens - size + 1, size)
    windows = [Draw(group, np.arange(start, start + size)) for start in starts for group in range(num_groups)]
    return tuple(windows[:MAX_DRAWS])


def measure(chosen: Bools, draws: Sequence[Draw]) -> Coverage:
    """Measure [layers, groups, tokens, experts] over draws."""
    touched = np.stack([chosen[:, draw.group, draw.tokens].any(axis=1).mean(axis=1) for draw in draws])
    of_draws = touched.mean(axis=1)
    return Coverage(float(of_draws.mean()), float(of_draws.std()), tuple(touched.mean(axis=0).tolist()))
