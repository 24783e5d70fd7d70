"""One step and the work in it: bytes, FLOP and calls, counted from sizes. Pure; it knows no seconds.

Attention is counted in two ways. `exact`: a row sees its own context. `padded`: SGLang's `torch_native`
backend, the one that serves on a CPU, computes rows for all tokens of a sequence whenever it extends one,
cached tokens too, and throws theirs away; decode rows that ride in a mixed chunk are extended as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from sglang_layered_lab.cost.coverage import Coverage
from sglang_layered_lab.cost.shape import ModelShape

Attention = Literal["exact", "padded"]
Joined = Literal["fused", "apart", "mixed"]
ALL_REDUCES = 2  # a layer, with tensor parallelism


@dataclass(frozen=True, slots=True)
class PromptRows:
    """Prompt rows of one step in `num_layers` layers; a row sees `context_tokens` tokens on average."""

    num_rows: int
    num_layers: int
    context_tokens: float
    num_prompts: int = 1

    @classmethod
    def of(cls, num_rows: int, num_layers: int, tokens_before: float = 0.0) -> PromptRows:
        """One prompt's rows after `tokens_before` of its tokens: each sees these and half of its own."""
        return cls(num_rows, num_layers, tokens_before + num_rows / 2)

    @property
    def sequence_tokens(self) -> float:
        """Tokens of a prompt when these rows are done; prompts are taken as equally long."""
        return self.context_tokens + self.num_rows / self.num_prompts / 2


@dataclass(frozen=True, slots=True)
class Step:
    """Decode rows through all layers beside prompt rows through some.

    `joined` says how: `fused` in one forward, each kind with its own attention; `apart` in a forward each;
    `mixed` as SGLang's mixed chunk, where decode rows are extended like prompts of one row.
    """

    decode_rows: int = 0
    context_tokens: float = 0.0  # that a decode row sees, on average
    prompt: PromptRows | None = None
    joined: Joined = "fused"


@dataclass(frozen=True, slots=True)
class Part:
    """Work of one phase, in which moving bytes and computing may overlap."""

    kind: Literal["dense", "experts", "attention", "head"]
    num_bytes: float
    flop: float = 0.0
    attention_flop: float = 0.0


@dataclass(frozen=True, slots=True)
class StepWork:
    """A step's work.

    A layer with prompt rows is a prompt layer call, one with decode rows alone a decode layer call (which
    CUDA graphs make cheap); a sequence call is one sequence's attention in one layer.
    """

    parts: tuple[Part, ...]
    prompt_layer_calls: int
    decode_layer_calls: int
    sequence_calls: int
    link_bytes: float  # of activations that tensor parallelism sums over devices

    @property
    def expert_bytes(self) -> float:
        """Bytes of the experts that are read."""
        return sum(part.num_bytes for part in self.parts if part.kind == "experts")

    @property
    def num_bytes(self) -> float:
        """Bytes of all parts."""
        return sum(part.num_bytes for part in self.parts)

    @property
    def flop(self) -> float:
        """FLOP of all parts, attention included."""
        return sum(part.flop + part.attention_flop for part in self.parts)


def work_of(model: ModelShape, coverage: Coverage, step: Step, attention: Attention = "exact") -> StepWork:
    """Count a step's work; no rows, no work."""
    segments = list(_segments(model, step))
    parts = [part for each in segments for part in _layer_parts(model, each, coverage, attention)]
    if parts:
        sampled = step.decode_rows + (step.prompt.num_prompts if step.prompt else 0)
        flop = 2 * model.head_params * sampled
        parts.append(Part("head", model.param_bytes * model.head_params, flop))
    row_bytes = ALL_REDUCES * model.hidden_size * model.param_bytes
    return StepWork(
        parts=tuple(parts),
        prompt_layer_calls=sum(each.num_layers for each in segments if each.prompt),
        decode_layer_calls=sum(each.num_layers for each in segments if not each.prompt),
        sequence_calls=sum(each.num_layers * each.num_sequences for each in segments),
        link_bytes=row_bytes * sum(each.num_layers * each.num_rows for each in segments),
    )


@dataclass(frozen=True, slots=True)
class _Segment:
    """Layers that the same rows go through together."""

    num_layers: int
    decode_rows: int
    context_tokens: float
    prompt: PromptRows | None = None
    is_mixed: bool = False

    @property
    def prompt_rows(self) -> int:
        return self.prompt.num_rows if self.prompt else 0

    @property
    def num_rows(self) -> int:
        return self.decode_rows + self.prompt_rows

    @property
    def num_sequences(self) -> int:
        return self.decode_rows + (self.prompt.num_prompts if self.prompt else 0)


def _segments(model: ModelShape, step: Step) -> Iterator[_Segment]:
    """Where there are layers and rows of a kind."""
    prompt = step.prompt if step.prompt and step.prompt.num_rows else None
    with_prompt = prompt.num_layers if prompt else 0
    together = step.decode_rows if step.joined != "apart" else 0
    alone = model.num_layers - with_prompt if together else model.num_layers
    if alone and step.decode_rows:
        yield _Segment(alone, step.decode_rows, step.context_tokens)
    if with_prompt:
        yield _Segment(with_prompt, together, step.context_tokens, prompt, step.joined == "mixed")


def _layer_parts(
    model: ModelShape, rows: _Segment, coverage: Coverage, attention: Attention
) -> Iterator[Part]:
    """Parts of all layers of a segment."""
    touched = rows.num_layers * coverage(model, rows.prompt_rows, rows.decode_rows)
    calls = rows.num_layers * rows.num_rows
    layer = model.layer
    dense_bytes = rows.num_layers * model.param_bytes * layer.dense_params
    yield Part("dense", dense_bytes, 2 * layer.dense_params * calls)
    expert_flop = 2 * model.num_experts_per_token * layer.expert_params * calls
    yield Part("experts", touched * layer.expert_bytes, expert_flop)
    for tokens, pairs in _attended(rows, attention):
        kv_bytes = rows.num_layers * tokens * model.kv_layer_bytes
        yield Part("attention", kv_bytes, attention_flop=rows.num_layers * 4 * layer.attention_width * pairs)


def _attended(rows: _Segment, attention: Attention) -> Iterator[tuple[float, float]]:
    """Tokens whose KV is read in a layer, and pairs of a row and a token: decode rows, then the prompt's."""
    is_padded = attention == "padded"
    if rows.decode_rows:
        tokens = rows.decode_rows * rows.context_tokens
        yield tokens, tokens * rows.context_tokens / 2 if is_padded and rows.is_mixed else tokens
    if rows.prompt:
        tokens = rows.prompt.num_prompts * rows.prompt.sequence_tokens
        exact = rows.prompt.num_rows * rows.prompt.context_tokens
        yield tokens, tokens * rows.prompt.sequence_tokens / 2 if is_padded else exact
