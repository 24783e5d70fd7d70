"""Lower bounds of step times on one GPU: every phase of a layer takes max(bytes / bandwidth, FLOP / peak).

Symbols. L layers, H hidden size, E experts a layer, k experts a token, I their intermediate size, n_q and
n_kv heads of size d, V vocabulary; b decode rows, each with context c; q prompt rows that see p earlier
tokens each on average. Of one layer, in parameters and FLOP:

    expert     3 H I                        experts read    coverage * E * 3 H I * bytes per expert parameter
    dense      2 H n_q d + 2 H n_kv d + E H     (attention's projections and the router)
    linear     2 (dense + k * 3 H I) FLOP a row
    attention  4 n_q d FLOP and, of decode rows, 2 n_kv d * 2 bytes, a row and context token

A step adds the output matrix, 2 V H bytes, once. Launches, routing, sampling and the host take no time here,
so a measured step is slower; the ratio says by how much. Coverage is the part of a layer's experts that its
rows touch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

BF16_BYTES = 2


@dataclass(frozen=True, slots=True)
class Gpu:
    """Rates that were reached on large copies and products, not the data sheet's."""

    bytes_per_s: float = 4.3e12
    flop_per_s: float = 790e12

    def time_s(self, num_bytes: float, num_flop: float) -> float:
        """The longer of moving and computing."""
        return max(num_bytes / self.bytes_per_s, num_flop / self.flop_per_s)


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of a mixture-of-experts decoder, in elements."""

    num_layers: int
    hidden_size: int
    num_experts: int
    num_experts_per_token: int
    expert_size: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    vocab_size: int
    expert_param_bytes: float = 2.0

    @property
    def expert_params(self) -> int:
        """Parameters of one expert."""
        return 3 * self.hidden_size * self.expert_size

    @property
    def expert_layer_bytes(self) -> float:
        """Bytes of one layer's experts."""
        return self.num_experts * self.expert_params * self.expert_param_bytes

    @property
    def dense_params(self) -> int:
        """Parameters that every row uses, of one layer."""
        projections = 2 * self.hidden_size * self.head_size * (self.num_heads + self.num_kv_heads)
        return projections + self.num_experts * self.hidden_size

    @property
    def kv_layer_bytes(self) -> int:
        """KV bytes of one token in one layer."""
        return 2 * self.num_kv_heads * self.head_size * BF16_BYTES

    def attention_flop(self, num_rows: int, context_tokens: float) -> float:
        """FLOP of one layer's attention."""
        return 4 * self.num_heads * self.head_size * num_rows * context_tokens


QWEN3_30B_A3B = ModelShape(48, 2048, 128, 8, 768, 32, 4, 128, 151936)
GPT_OSS_20B = ModelShape(24, 2880, 32, 4, 2880, 64, 8, 64, 201088)

Coverage = Callable[[ModelShape, int, int], float]  # model, prompt rows, decode rows -> part of the experts


def uniform_coverage(model: ModelShape, prompt_rows: int, decode_rows: int) -> float:
    """Every row picks its experts by lot; what dummy weights come close to."""
    return 1.0 - (1.0 - model.num_experts_per_token / model.num_experts) ** (prompt_rows + decode_rows)


# Real text, Qwen3-30B-A3B: rows -> coverage. Decode 16 to 128 and prompt 512 to 8192 are the paper's
# (Table 1, and bars of Figure 2 as read from it); what lies outside is our own inter- and extrapolation.
DECODE_COVERAGE = (
    (1, 0.0625),
    (2, 0.12),
    (4, 0.21),
    (8, 0.34),
    (16, 0.47),
    (32, 0.55),
    (64, 0.69),
    (128, 0.863),
    (256, 0.95),
)
PROMPT_COVERAGE = (
    (64, 0.52),
    (128, 0.62),
    (256, 0.73),
    (512, 0.82),
    (1024, 0.88),
    (2048, 0.923),
    (4096, 0.955),
    (8192, 0.985),
)


def paper_coverage(model: ModelShape, prompt_rows: int, decode_rows: int) -> float:
    """What the paper saw on real text; the two sets of rows are taken as independent."""
    decode = _interpolate(DECODE_COVERAGE, decode_rows) if decode_rows else 0.0
    if not prompt_rows:
        return decode
    table = PROMPT_COVERAGE if prompt_rows >= PROMPT_COVERAGE[0][0] else DECODE_COVERAGE
    prompt = _interpolate(table, prompt_rows)
    return 1.0 - (1.0 - prompt) * (1.0 - decode)


COVERAGES: dict[str, Coverage] = {"uniform": uniform_coverage, "paper": paper_coverage}


def _interpolate(table: tuple[tuple[int, float], ...], num_rows: int) -> float:
    """Linear in the logarithm of the rows; the last value beyond the table."""
    for (low, before), (high, after) in pairwise(table):
        if num_rows <= high:
            return before + (after - before) * math.log(num_rows / low) / math.log(high / low)
    return table[-1][1]


@dataclass(frozen=True, slots=True)
class PromptRows:
    """Prompt rows of one step in `num_layers` layers; each sees all before and half of its own on average."""

    num_rows: int
    num_layers: float
    tokens_before: int = 0

    @property
    def context_tokens(self) -> float:
        """Tokens that a row's attention sees, on average."""
        return self.tokens_before + self.num_rows / 2


@dataclass(frozen=True, slots=True)
class Bound:
    """Least time of a step, and the expert bytes that it reads."""

    time_s: float
    expert_bytes: float


def step_bound(
    model: ModelShape,
    gpu: Gpu,
    coverage: Coverage,
    decode_rows: int,
    context_tokens: int,
    prompt: PromptRows | None = None,
) -> Bound:
    """Decode rows through all layers, the prompt's rows through its own."""
    layers = prompt.num_layers if prompt else 0.0
    time_s = BF16_BYTES * model.vocab_size * model.hidden_size / gpu.bytes_per_s
    expert_bytes = 0.0
    parts: list[tuple[float, PromptRows | None]] = [(model.num_layers - layers, None), (layers, prompt)]
    for num_layers, rows in parts:
        if num_layers and (decode_rows or rows):
            one = _layer_bound(model, gpu, coverage, decode_rows, context_tokens, rows)
            time_s += num_layers * one.time_s
            expert_bytes += num_layers * one.expert_bytes
    return Bound(time_s, expert_bytes)


def _layer_bound(
    model: ModelShape, gpu: Gpu, coverage: Coverage, decode_rows: int, context: int, prompt: PromptRows | None
) -> Bound:
    prompt_rows = prompt.num_rows if prompt else 0
    rows = prompt_rows + decode_rows
    expert_bytes = coverage(model, prompt_rows, decode_rows) * model.expert_layer_bytes
    time_s = gpu.time_s(BF16_BYTES * model.dense_params, 2 * model.dense_params * rows)
    time_s += gpu.time_s(expert_bytes, 2 * model.num_experts_per_token * model.expert_params * rows)
    kv_bytes = decode_rows * context * model.kv_layer_bytes
    time_s += gpu.time_s(kv_bytes, model.attention_flop(decode_rows, context))
    if prompt:
        seen_bytes = 2 * prompt.context_tokens * model.kv_layer_bytes  # 2 * mean = tokens read in the end
        time_s += gpu.time_s(seen_bytes, model.attention_flop(prompt.num_rows, prompt.context_tokens))
    return Bound(time_s, expert_bytes)


@dataclass(frozen=True, slots=True)
class PromptBound:
    """A whole prompt: least time to its first token, its worst step, its expert bytes."""

    ttft_s: float
    worst_step_s: float
    expert_bytes: float


def layered_bound(
    model: ModelShape,
    gpu: Gpu,
    coverage: Coverage,
    *,
    prompt_tokens: int,
    num_groups: int,
    decode_rows: int,
    context_tokens: int = 2048,
) -> PromptBound:
    """A prompt in `num_groups` groups of the same number of layers, whole or not; 1 is the whole prompt."""
    rows = PromptRows(prompt_tokens, model.num_layers / num_groups)
    step = step_bound(model, gpu, coverage, decode_rows, context_tokens, rows)
    return PromptBound(num_groups * step.time_s, step.time_s, num_groups * step.expert_bytes)


def chunked_bound(
    model: ModelShape,
    gpu: Gpu,
    coverage: Coverage,
    *,
    prompt_tokens: int,
    chunk_tokens: int,
    decode_rows: int,
    context_tokens: int = 2048,
) -> PromptBound:
    """A prompt in mixed chunks through all layers; the last chunk may be smaller."""
    steps = []
    for start in range(0, prompt_tokens, chunk_tokens):
        rows = PromptRows(min(chunk_tokens, prompt_tokens - start), model.num_layers, start)
        steps.append(step_bound(model, gpu, coverage, decode_rows, context_tokens, rows))
    return PromptBound(
        sum(step.time_s for step in steps),
        max(step.time_s for step in steps),
        sum(step.expert_bytes for step in steps),
    )
