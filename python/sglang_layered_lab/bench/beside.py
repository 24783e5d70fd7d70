"""What streams that decode beside prompts feel of them: their gaps while a prompt is in prefill. Pure.

docs/metrics.md, section *Benchmark*, defines it with symbols.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sglang_layered_lab.bench.metrics import FloatArray
from sglang_layered_lab.bench.trace import RequestTrace


def gaps_beside(prompts: Sequence[RequestTrace], background: Sequence[RequestTrace]) -> FloatArray:
    """Gaps in s of the background that overlap a prompt's time from its sending to its first token.

    Tokens that came together count as one arrival, so that a pause is not thinned out by zeros.
    """
    spans = [(each.sent_s, each.arrivals[0].time_s) for each in prompts if each.arrivals]
    found = [np.zeros(0)]
    for stream in background:
        times_s = np.array([each.time_s for each in stream.arrivals])
        starts_s, ends_s = times_s[:-1], times_s[1:]
        overlaps = np.zeros(len(starts_s), dtype=bool)
        for sent_s, first_s in spans:
            overlaps |= (ends_s > sent_s) & (starts_s < first_s)
        found.append((ends_s - starts_s)[overlaps])
    return np.concatenate(found)
