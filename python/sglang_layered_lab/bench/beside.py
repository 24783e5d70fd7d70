"""What streams that decode beside prompts feel of them: their gaps while a prompt is in prefill. Pure.

docs/metrics.md, section *Benchmark*, defines it with symbols.
"""

from collections.abc import Sequence

import numpy as np

from sglang_layered_lab.bench.metrics import FloatArray
from sglang_layered_lab.bench.trace import RequestTrace


def pauses_beside(prompts: Sequence[RequestTrace], background: Sequence[RequestTrace]) -> FloatArray:
    """Gaps of the background that overlap a prompt's time from its sending to its first token.

    Tokens that came together count as one arrival, so that a pause is not thinned out by zeros.

    Returns:
        Start and end of each gap in s, shape [gaps, 2], stream after stream.
    """
    spans = [(each.sent_s, each.arrivals[0].time_s) for each in prompts if each.arrivals]
    found = [np.zeros((0, 2))]
    for stream in background:
        times_s = np.array([each.time_s for each in stream.arrivals])
        starts_s, ends_s = times_s[:-1], times_s[1:]
        overlaps = np.zeros(len(starts_s), dtype=bool)
        for sent_s, first_s in spans:
            overlaps |= (ends_s > sent_s) & (starts_s < first_s)
        found.append(np.stack([starts_s, ends_s], axis=1)[overlaps])
    return np.concatenate(found)


def gaps_beside(prompts: Sequence[RequestTrace], background: Sequence[RequestTrace]) -> FloatArray:
    """Lengths in s of `pauses_beside`."""
    pauses_s = pauses_beside(prompts, background)
    lengths_s: FloatArray = pauses_s[:, 1] - pauses_s[:, 0]
    return lengths_s
