"""Limits against a slow recount of every gap."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from sglang_layered.metrics.slo import RequestTiming, SloLimits

LIMITS = SloLimits(ttft_s=1.0, tbt_s=0.25)
deltas = st.lists(st.sampled_from([0.0, 0.1, 0.25, 0.26, 1.0, 1.01]), min_size=1, max_size=12)


@given(deltas, st.lists(st.integers(1, 3), min_size=12, max_size=12))
def test_verdicts_equal_a_recount(gaps_s: list[float], tokens_a_time: list[int]) -> None:
    timing, now_s, num_tokens, times = RequestTiming(), 100.0, 0, []
    for gap_s, more in zip(gaps_s, tokens_a_time, strict=False):
        now_s, num_tokens = now_s + gap_s, num_tokens + more
        times += [now_s] * more
        timing.heard(num_tokens, now_s, arrival_s=100.0)
        timing.heard(num_tokens, now_s + 5.0, arrival_s=100.0)  # no news
    ttft_met = times[0] - 100.0 <= 1.0
    tbt_met = all(later - earlier <= 0.25 for earlier, later in pairwise(times))
    assert LIMITS.verdicts(timing) == {"ttft": ttft_met, "tbt": tbt_met, "both": ttft_met and tbt_met}


def test_only_limits_that_are_set_are_judged() -> None:
    timing = RequestTiming()
    timing.heard(1, 3.0, arrival_s=0.0)
    assert SloLimits(tbt_s=0.1).verdicts(timing) == {"tbt": True}
    assert SloLimits(ttft_s=2.0).verdicts(timing) == {"ttft": False}
    assert SloLimits().verdicts(timing) == {}


def test_a_request_without_a_token_missed_its_first() -> None:
    assert LIMITS.verdicts(RequestTiming()) == {"ttft": False, "tbt": True, "both": False}
