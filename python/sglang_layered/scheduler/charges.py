"""What each request that asked for it is charged, and its way into the request's `meta_info`.

A request asks with `"custom_params": {"layered_report": true}` in its sampling parameters. SGLang's
`customized_info` holds one value a key for every output token: what was charged since the token before.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

ASK = "layered_report"
EXPERT_BYTES, ENERGY_J = "expert_bytes", "energy_estimate_j"


class Charges:
    """Amounts that are charged but not reported yet, kept on the requests; keys are those in `meta_info`."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._keys = tuple(keys)

    def add(self, key: str, amount: float, shares: Sequence[tuple[Any, float]]) -> None:
        """Part `amount` among requests by their weights; only those that asked are told of it."""
        total = sum(weight for _, weight in shares)
        for req, weight in shares:
            if weight and asked(req):
                due = getattr(req, "layered_due", None)
                if due is None:
                    due = req.layered_due = dict.fromkeys(self._keys, 0.0)
                due[key] += amount * weight / total

    def report(self, reqs: Iterable[Any]) -> None:
        """Hand over what is due to each of these that gets a token from the results at hand."""
        for req in reqs:
            if asked(req) and gets_token(req):
                due = getattr(req, "layered_due", None) or dict.fromkeys(self._keys, 0.0)
                req.layered_due = None
                if req.customized_info is None:
                    req.customized_info = {}
                for key, amount in due.items():
                    req.customized_info.setdefault(key, []).append(_rounded(key, amount))


def asked(req: Any) -> bool:
    """True when the request wants its charges reported."""
    params = req.sampling_params.custom_params
    return isinstance(params, dict) and bool(params.get(ASK))


def gets_token(req: Any) -> bool:
    """True when SGLang will give this request a token from results that it has not processed yet.

    Upstream: srt/managers/scheduler_components/batch_result_processor.py; a middle chunk gives none.
    """
    return not (req.finished() or req.is_retracted) and req.inflight_middle_chunks <= 0


def _rounded(key: str, amount: float) -> float | int:
    return round(amount) if key == EXPERT_BYTES else round(amount, 6)
