"""Times that a step policy decides by: rank 0's clock, and when requests got their last tokens."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from sglang_layered.scheduler.rank_clock import LastTokenTimes, RankClock, Reading


def test_a_reading_has_each_duration_once_and_the_start_once() -> None:
    clock = RankClock()
    clock.step_took(0.5)
    clock.step_took(0.25)
    reading = clock.read(has_other_ranks=False)
    assert reading.durations_s == (0.5, 0.25)
    assert clock.read(has_other_ranks=False).durations_s == ()
    other = RankClock()
    other.step_took(9.0)  # this rank's own time, which nobody asks for
    other.publish()
    other.latest = reading
    assert other.read(has_other_ranks=True) == reading
    assert other.read(has_other_ranks=True) == Reading(reading.now_s)


def test_the_longest_gap_is_that_of_requests_that_got_a_token() -> None:
    old, late, fresh, unknown = (Asker() for _ in range(4))
    times = LastTokenTimes()
    times.collect([_outcome("prompt", old, late)])
    assert times.mark(1.0) is None and times.mark(1.5) is None
    times.collect([_outcome("decode", old), _outcome("prompt", fresh)])
    assert times.mark(2.0) == 1.0
    assert times.oldest_after([old, late, unknown], 0.5) == 1.0
    assert times.oldest_after([old, late], 1.0) == 2.0
    assert times.oldest_after([late], 1.0) is None and times.oldest_after([unknown], 0.0) is None
    times.collect([_outcome("decode", late, unknown)])
    assert times.mark(4.0) == 3.0
    times.collect([_outcome("decode", old, late, fresh, unknown)])
    assert times.mark(4.5) == 2.5
    times.collect([_outcome("decode", old, late, fresh, unknown)])
    assert times.mark(4.75) == 0.25 and times.oldest_after([old, late, fresh, unknown], 0.0) == 4.75
    times.collect([_outcome("decode", old, late)])
    assert times.mark(5.0) == 0.25
    assert times.oldest_after([old, late], 0.0) == 5.0 and times.oldest_after([old, fresh], 0.0) == 4.75


def test_who_began_beside_a_batch_keeps_its_time_when_the_batch_goes_on_alone() -> None:
    old, fresh = Asker(), Asker()
    times = LastTokenTimes()
    times.collect([_outcome("decode", old), _outcome("prompt", fresh)])
    times.mark(1.0)
    assert times.last_of([old]) == times.last_of([old, fresh]) == 1.0
    times.collect([_outcome("decode", old)])
    assert times.mark(2.0) == 1.0 and times.last_of([old]) == 2.0
    assert [*times.last_of([old, fresh])] == [2.0, 1.0]


class Asker:
    """Stands in for a request."""


def _outcome(kind: str, *reqs: Any) -> Any:
    mode = SimpleNamespace(is_decode=lambda: kind == "decode")
    return SimpleNamespace(batch_at_launch=SimpleNamespace(forward_mode=mode, reqs=reqs))
