"""A bias on the routers of a mixture-of-experts model, as frozen data. Knows no torch and no file.

Some channels of the residual stream are reserved. The embedding sets them by the token's id and no layer
writes them, so a router at any depth can read the id out of them and push experts up or down by it:

* skew: in each layer the same few experts are ahead for every token;
* locality: each topic, a range of token ids, likes and dislikes experts of its own;
* words: so does each token. Without it a row's choice would hang on its context alone, and the longer a
  random model's context is, the more its rows are alike.

All are in standard deviations of the layer's own router logits, so they mean the same in any model.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sglang_layered_lab.models.router_topics import TokenRange

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]

# A token's code on the word channels: a sign each, of a size that gives the code length 1.
NUM_WORD_CHANNELS = 16
WORD_VALUE = 0.25
# Standard deviation of a word's pushes: with it three quarters of what varies between rows is the token's.
WORD_SCALE = 3.0**0.5
_WORDS = 2**32  # the seed's branch for codes; a layer's branch is its index


@dataclass(frozen=True, slots=True)
class RouterScales:
    """How strong the bias is, in standard deviations of a layer's own logits."""

    skew: float = 0.0  # push of a favoured expert
    favoured_share: float = 0.0  # part of a layer's experts that are favoured
    locality: float = 0.0  # standard deviation of a topic's pushes
    words: float = 0.0  # standard deviation of a token's pushes


@dataclass(frozen=True, slots=True)
class RouterTaste:
    """What the seed draws for a layer: which experts come first, and what topics and words like.

    Over all topics and over all words each expert is liked as much and as unevenly as any other: only skew
    sets experts apart.
    """

    rank: Floats  # [experts], in [0, 1]: an expert is favoured if it is above 1 - favoured_share
    topics: Floats  # [topics, experts], of mean 0 and standard deviation 1 for each expert
    words: Floats  # [word channels, experts], of root mean square 1 for each expert

    def pushes(self, scales: RouterScales) -> Floats:
        """Return what a set channel gives each expert, [channels, experts]."""
        favoured = (self.rank > 1 - scales.favoured_share)[None, :]
        parts = [scales.skew * favoured, scales.locality * self.topics, scales.words * self.words]
        return np.concatenate(parts).astype(np.float32)


@dataclass(frozen=True, slots=True)
class RouterBias:
    """Everything that decides the edit of a checkpoint."""

    seed: int
    num_experts: int
    vocab_size: int
    first_channel: int  # reserved from here: one set for all tokens, one for each topic, the word channels
    topics: tuple[TokenRange, ...]
    channel_value: float  # what a set channel holds from the embedding on
    # Router weight on a set channel that moves a logit by one standard deviation, by index of the layer.
    unit_of_layer: Mapping[int, float]
    scales: RouterScales = RouterScales()
    topic_bonus: float = 0.0  # weight of lm_head that keeps a continuation in its topic

    @property
    def num_channels(self) -> int:
        """Number of reserved channels."""
        return 1 + len(self.topics) + NUM_WORD_CHANNELS

    @property
    def channels(self) -> slice:
        """The reserved channels."""
        return slice(self.first_channel, self.first_channel + self.num_channels)

    def token_channels(self) -> Floats:
        """Return how far each token sets the reserved channels, [vocabulary, channels]."""
        one_hot = self.topics_of_tokens()[:, None] == np.arange(len(self.topics))
        signs = np.random.default_rng([self.seed, _WORDS]).choice(
            [-WORD_VALUE, WORD_VALUE], size=(self.vocab_size, NUM_WORD_CHANNELS)
        )
        return np.hstack([np.ones((self.vocab_size, 1)), one_hot, signs]).astype(np.float32)

    def topics_of_tokens(self) -> npt.NDArray[np.int64]:
        """Return the topic of each token id, -1 for none."""
        found = np.full(self.vocab_size, -1, dtype=np.int64)
        for topic, (first, end) in enumerate(self.topics):
            found[first:end] = topic
        return found

    def taste(self, layer: int) -> RouterTaste:
        """Draw a layer's taste; it does not depend on how many layers there are."""
        generator = np.random.default_rng([self.seed, layer])
        # The offset lets the mean of many layers follow favoured_share in finer steps than one expert.
        rank = (generator.permutation(self.num_experts) + generator.random()) / self.num_experts
        topics = generator.standard_normal((len(self.topics), self.num_experts))
        if len(topics) > 1:
            topics -= topics.mean(axis=0)
            topics /= topics.std(axis=0)
        words = generator.standard_normal((NUM_WORD_CHANNELS, self.num_experts))
        words /= np.sqrt((words**2).mean(axis=0))
        return RouterTaste(rank.astype(np.float32), topics.astype(np.float32), words.astype(np.float32))

    def router_columns(self, layer: int) -> Floats:
        """Return a router's weights on the reserved channels, [experts, channels]."""
        return np.float32(self.unit_of_layer[layer]) * self.taste(layer).pushes(self.scales).T

    def head_columns(self) -> Floats:
        """Return lm_head's weights on the reserved channels, [vocabulary, channels]."""
        columns = self.token_channels() * np.float32(self.topic_bonus)
        columns[:, 0] = 0
        columns[:, 1 + len(self.topics) :] = 0
        return columns

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for a record."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "RouterBias":
        """Read what `as_dict` gave, from JSON too."""
        restored = {
            "topics": tuple((first, end) for first, end in fields["topics"]),
            "unit_of_layer": {int(layer): unit for layer, unit in fields["unit_of_layer"].items()},
            "scales": RouterScales(**fields["scales"]),
        }
        return cls(**{**fields, **restored})
