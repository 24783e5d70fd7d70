"""Feeds expert traffic into the metrics, and keeps the totals that `/server_info` shows."""

from __future__ import annotations

from typing import Any

from sglang_layered.metrics.instruments import Instruments
from sglang_layered.metrics.traffic import (
    PHASES,
    ExpertShape,
    ForwardCounts,
    Phase,
    Shares,
    phase_loads,
    shares,
)


class TrafficFeed:
    """Of one rank. `broken` says why counting has ended, if it has; the totals then stay as they are."""

    def __init__(self, shape: ExpertShape, instruments: Instruments) -> None:
        self.broken: str | None = None
        self._shape = shape
        self._instruments = instruments
        self._bytes: dict[Phase, int] = dict.fromkeys(PHASES, 0)
        self._num_forwards = 0
        for phase in PHASES:
            instruments.add("expert_load_bytes_total", 0, phase=phase)

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
