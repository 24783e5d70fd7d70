"""What the drafts of a model are made of: its configuration and weights, and what its rows hold."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from sglang_layered_lab.models.draftable import average_columns, averaging_of, embedding_of, rms
from sglang_layered_lab.models.tensors import MATRIX_GAIN

FINAL_RMS = 0.15  # of a target's rows behind the last layer, about
LATENT_HEAD_SIZE = 32  # of values, in models with latent attention

Weights = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Target:
    """A target's config.json and weights; all its matrices are [outputs, inputs]."""

    whole_config: Mapping[str, Any]
    weights: Weights

    @property
    def config(self) -> Mapping[str, Any]:
        """The language model's part of config.json."""
        text: Mapping[str, Any] = self.whole_config.get("text_config", self.whole_config)
        return text

    @property
    def hidden_size(self) -> int:
        """Columns of a row."""
        return int(self.config["hidden_size"])

    @property
    def head_size(self) -> int:
        """Columns of a head of a draft's layer, as many as of a value of the target's."""
        return LATENT_HEAD_SIZE if "kv_lora_rank" in self.config else int(self.config["head_dim"])

    @property
    def num_heads(self) -> int:
        """Heads of a draft's layer, as wide as a row together."""
        return self.hidden_size // self.head_size

    @property
    def averaging(self) -> str:
        """Beginning of the names of the attention that averages."""
        return averaging_of(self.weights)

    @property
    def embedding(self) -> torch.Tensor:
        """The embeddings [tokens, hidden]."""
        return self.weights[embedding_of(self.weights)]

    def below(self, prefix: str, place: str) -> Weights:
        """Copies of the weights whose names begin with `prefix`, named by `place` instead."""
        return {
            place + name.removeprefix(prefix): weight.clone()
            for name, weight in self.weights.items()
            if name.startswith(prefix)
        }

    def next_row(self) -> torch.Tensor:
        """What makes a row [hidden] of an embedding and a row, both normed, side by side: the token's row."""
        embedding, average = self.columns()
        return torch.cat([embedding * rms(self.embedding), average * (FINAL_RMS / 2)], dim=1)

    def columns(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Two matrices that keep a row's embedding, and its average."""
        average = average_columns(self.hidden_size)
        keeps_average = torch.zeros(self.hidden_size)
        keeps_average[average] = 1
        return torch.diag(1 - keeps_average), torch.diag(keeps_average)

    def averaging_heads(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Values [heads * size, hidden] and output [hidden, heads * size]."""
        if "kv_lora_rank" in self.config:
            values = self._latent_values()
        else:
            values = self.weights[f"{self.averaging}v_proj.weight"].unflatten(0, (-1, self.head_size))
        values = values.repeat_interleave(self.num_heads // len(values), 0).flatten(0, 1)
        return values, self.weights[f"{self.averaging}o_proj.weight"]

    def _latent_values(self) -> torch.Tensor:
        """As [heads, size, hidden], with one factor for the norm in between of all rows."""
        rank, values = self.config["kv_lora_rank"], self.config["v_head_dim"]
        down = self.weights[f"{self.averaging}kv_a_proj_with_mqa.weight"][:rank]
        up = self.weights[f"{self.averaging}kv_b_proj.weight"].unflatten(0, (self.num_heads, -1))
        return up[:, -values:] @ down / MATRIX_GAIN
