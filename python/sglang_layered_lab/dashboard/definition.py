"""The dashboard, top to bottom."""

from __future__ import annotations

from sglang_layered_lab.dashboard.model import Row
from sglang_layered_lab.dashboard.rows_prefill import LATENCY, LAYERS, MOE
from sglang_layered_lab.dashboard.rows_service import ENERGY, KV, ROUTER, SLO

TITLE = "SGLang, layered prefill"
ROWS: tuple[Row, ...] = (LATENCY, LAYERS, MOE, ENERGY, SLO, KV, ROUTER)
