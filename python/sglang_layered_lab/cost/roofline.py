"""The least that a step can take on a device: bytes and FLOP of its parts against the device's rates. Pure.

In every part of a step moving bytes and computing overlap, and the longer counts; no launch, no host. What a
step takes on a machine that ran some is a fit's to say (`fit`).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Literal

from sglang_layered.core.layer_shape import LayerShape
from sglang_layered.core.pacing import StepLoad
from sglang_layered_lab.cost.coverage import Coverage
from sglang_layered_lab.cost.sizes import layer_of
from sglang_layered_lab.models.recipe import DTYPE_BYTES, ModelRecipe

ALL_REDUCES = 2  # a layer, with tensor parallelism


@dataclass(frozen=True, slots=True)
class Part:
    """Work of one phase; the bytes of a `link` part are those that devices sum up."""

    kind: Literal["dense", "experts", "attention", "head", "link"]
    num_bytes: float
    flop: float = 0.0


@dataclass(frozen=True, slots=True)
class Device:
    """One device, or several that share every layer by tensor parallelism."""

    bytes_per_s: float
    flop_per_s: float  # bf16, dense
    link_bytes_per_s: float | None  # an all-reduce's payload per second; None for one device

    def part_s(self, part: Part) -> float:
        """Seconds of a part: the longer of moving and computing."""
        rate = (self.link_bytes_per_s or 0.0) if part.kind == "link" else self.bytes_per_s
        return max(part.num_bytes / rate, part.flop / self.flop_per_s)


# 90 % of 4.8 TB/s and 80 % of 989 TFLOP/s: what large copies and products reach.
H200 = Device(4.3e12, 790e12, None)
# Tensor parallel; 90 % of 3.35 TB/s and 80 % of 989 TFLOP/s each, all-reduces at 80 % of NVLink's 450 GB/s.
TWO_H100 = Device(2 * 0.9 * 3.35e12, 2 * 0.8 * 989e12, 0.8 * 450e9)
DEVICES = MappingProxyType({"h200": H200, "2xh100": TWO_H100})


@dataclass(frozen=True)
class Roofline:
    """How long a step of this model takes on this device at least."""

    shape: ModelRecipe
    coverage: Coverage
    device: Device
    is_padded = False  # attention as a GPU computes it: a row sees its own context, once

    @cached_property
    def layer(self) -> LayerShape:
        """One of the model's layers."""
        return layer_of(self.shape)

    @property
    def plain_bytes(self) -> int:
        """Width of what no method quantizes here: activations, KV cache and output matrix."""
        return DTYPE_BYTES[self.shape.dtype]

    def step_s(self, load: StepLoad) -> float:
        """Seconds of a step; 0 for no rows."""
        return sum(self.device.part_s(part) for part in self.work(load))

    def expert_bytes(self, load: StepLoad) -> float:
        """Bytes of the experts that a step reads."""
        return sum(part.num_bytes for part in self.work(load) if part.kind == "experts")

    def work(self, load: StepLoad) -> tuple[Part, ...]:
        """The parts of a step: of layers with decode rows alone, of those with prompt rows, of the head."""
        with_prompt = load.prompt_layers if load.prompt_rows else 0.0
        joins = bool(with_prompt) and not load.is_apart
        alone = StepLoad(load.decode_rows, load.decode_tokens)
        parts = list(self._layers(alone, self.shape.num_layers - (with_prompt if joins else 0.0)))
        if with_prompt:
            joined = load if joins else StepLoad(0, 0, load.prompt_lens, load.prefix_lens)
            parts += self._layers(joined, with_prompt)
        if parts:
            head_params = self.shape.vocab_size * self.shape.hidden_size
            sampled = load.decode_rows + len(load.prompt_lens)
            parts.append(Part("head", self.plain_bytes * head_params, 2 * head_params * sampled))
        return tuple(parts)

    def _layers(self, load: StepLoad, num_layers: float) -> Iterator[Part]:
        """Parts of layers that all rows of `load` go through together."""
        layer, num_rows = self.layer, load.decode_rows + load.prompt_rows
        if not (num_layers and num_rows):
            return
        calls = num_layers * num_rows
        yield Part(
            "dense", num_layers * layer.param_bytes * layer.dense_params, 2 * layer.dense_params * calls
        )
        if layer.num_experts:
            touched = num_layers * self.coverage(self.shape, load.prompt_rows, load.decode_rows)
            flop = 2 * layer.num_experts_per_token * layer.expert_params * calls
            yield Part("experts", touched * layer.expert_bytes, flop)
        kv_bytes = 2 * self.shape.num_kv_heads * self.shape.head_size * self.plain_bytes
        for tokens, pairs in _attended(load):
            flop = num_layers * 4 * layer.attention_width * pairs
            yield Part("attention", num_layers * tokens * kv_bytes, flop)
        if self.device.link_bytes_per_s is not None:
            yield Part("link", ALL_REDUCES * self.shape.hidden_size * self.plain_bytes * calls)


def _attended(load: StepLoad) -> Iterator[tuple[float, float]]:
    """Tokens whose KV is read in a layer, and pairs of a row and a token: decode rows, then each prompt."""
    if load.decode_rows:
        yield load.decode_tokens, load.decode_tokens
    for rows, before in zip(load.prompt_lens, load.prefix_lens, strict=True):
        yield before + rows, rows * (before + rows / 2)
