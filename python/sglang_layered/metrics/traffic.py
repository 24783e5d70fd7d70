"""From counted experts to bytes, coverage and shares, and to metrics; knows no request, tensor or clock.

Definitions, with symbols, are in docs/metrics.md, section Server.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sglang_layered.metrics.instruments import Instruments

Phase = Literal["prompt", "decode", "hybrid"]
PHASES: tuple[Phase, ...] = ("prompt", "decode", "hybrid")


@dataclass(frozen=True, eq=False)
class ExpertShape:
    """The routed experts of this rank's MoE layers; arrays are int64 [num_moe_layers].

    `expert_bytes` is what one expert's weights take in memory on this rank, in the dtype they are served in;
    `num_experts` how many of them this rank holds; `top_k` how many a row activates on all ranks together.
    """

    layer_ids: tuple[int, ...]
    expert_bytes: NDArray[np.int64]
    num_experts: NDArray[np.int64]
    top_k: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ForwardCounts:
    """What one forward activated; arrays are int64 [num_moe_layers], sums over the layer's calls.

    A call is a prompt call (decode call) when it had such rows; one with both is hybrid.
    """

    num_prompt_rows: int
    num_decode_rows: int
    num_calls: NDArray[np.int64]
    num_prompt_calls: NDArray[np.int64]
    num_decode_calls: NDArray[np.int64]
    prompt_experts: NDArray[np.int64]
    decode_experts: NDArray[np.int64]
    union_experts: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class PhaseLoad:
    """What the layers of one phase activated in a forward; the ratios are means over those layers."""

    num_bytes: int
    coverage: float
    tokens_per_expert: float


@dataclass(frozen=True, slots=True)
class Shares:
    """A forward's expert bytes, parted between its prompts and its decoding requests; they add up."""

    prompt_bytes: float
    decode_bytes: float


def phase_loads(counts: ForwardCounts, shape: ExpertShape) -> dict[Phase, PhaseLoad]:
    """Bytes, coverage and rows per expert of each phase that some layer was in."""
    prompt_rows, decode_rows = counts.num_prompt_rows, counts.num_decode_rows
    by_phase: dict[Phase, tuple[NDArray[np.int64], int]]
    if prompt_rows == 0:
        by_phase = {"decode": (counts.decode_experts, decode_rows)}
    elif decode_rows == 0:
        by_phase = {"prompt": (counts.prompt_experts, prompt_rows)}
    else:
        is_hybrid = _is_hybrid(counts)
        by_phase = {
            "prompt": (np.where(is_hybrid, 0, counts.prompt_experts), prompt_rows),
            "decode": (np.where(is_hybrid, 0, counts.decode_experts), decode_rows),
            "hybrid": (np.where(is_hybrid, counts.union_experts, 0), prompt_rows + decode_rows),
        }
    return {
        phase: _load(experts, num_rows, shape)
        for phase, (experts, num_rows) in by_phase.items()
        if experts.any()
    }


def shares(counts: ForwardCounts, shape: ExpertShape) -> Shares:
    """Part the bytes: a hybrid layer's go to prompts and decodes as the experts that each activated.

    An expert that both activated is thus shared between them.
    """
    is_hybrid = _is_hybrid(counts)
    both = np.maximum(counts.prompt_experts + counts.decode_experts, 1)
    part = counts.union_experts / both
    prompt = np.where(is_hybrid, part * counts.prompt_experts, counts.prompt_experts)
    decode = np.where(is_hybrid, part * counts.decode_experts, counts.decode_experts)
    return Shares(float(prompt @ shape.expert_bytes), float(decode @ shape.expert_bytes))


def _is_hybrid(counts: ForwardCounts) -> NDArray[np.bool_]:
    return (counts.num_prompt_calls + counts.num_decode_calls) > counts.num_calls


def _load(experts: NDArray[np.int64], num_rows: int, shape: ExpertShape) -> PhaseLoad:
    """Over the layers of one phase: those that activated an expert."""
    layers = experts > 0
    active = experts[layers]
    return PhaseLoad(
        num_bytes=int(experts @ shape.expert_bytes),
        coverage=float((active / shape.num_experts[layers]).mean()),
        tokens_per_expert=float((num_rows * shape.top_k[layers] / active).mean()),
    )


class TrafficFeed:
    """Writes one rank's traffic into the metrics, and keeps totals.

    `broken` says why counting has ended, if it has; the totals then stay as they are.
    """

    def __init__(self, shape: ExpertShape, instruments: Instruments) -> None:
        self.broken: str | None = None
        self._shape = shape
        self._instruments = instruments
        self._bytes: dict[Phase, int] = dict.fromkeys(PHASES, 0)
        self._num_forwards = 0

    def add(self, counts: ForwardCounts) -> None:
        """Take in one forward."""
        self._num_forwards += 1
        for phase, load in phase_loads(counts, self._shape).items():
            self._bytes[phase] += load.num_bytes
            self._instruments.add("expert_load_bytes_total", load.num_bytes, phase=phase)
            self._instruments.observe("expert_coverage_ratio", load.coverage, phase=phase)
            self._instruments.observe("expert_tokens_per_active_expert", load.tokens_per_expert, phase=phase)

    def shares(self, counts: ForwardCounts) -> Shares:
        """The parts of a forward that its prompts and its decoding requests bear."""
        return shares(counts, self._shape)

    def state(self) -> dict[str, Any]:
        """Totals since the server started, as JSON values; bytes are this rank's."""
        return {
            "num_forwards": self._num_forwards,
            "load_bytes": dict(self._bytes),
            "moe_layers": list(self._shape.layer_ids),
            "expert_bytes": self._shape.expert_bytes.tolist(),
            "experts": self._shape.num_experts.tolist(),
            "experts_per_token": self._shape.top_k.tolist(),
            "broken": self.broken,
        }
