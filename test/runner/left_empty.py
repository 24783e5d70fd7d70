"""The shared scheduler between two tests: empty, or the test that left something in it fails."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sglang.srt.managers.schedule_batch import ScheduleBatch

from harness import SteppedScheduler


@contextmanager
def left_empty(stepped: SteppedScheduler) -> Iterator[None]:
    """Nothing may be in it before and after.

    By hand it is emptied only while a failure goes up, which stays one: for the next test, or for hypothesis,
    which runs the failing operations again.
    """
    _begin_anew(stepped)
    try:
        yield
    except BaseException:
        _empty_by_hand(stepped.scheduler)
        raise
    finally:
        _begin_anew(stepped)


def _begin_anew(stepped: SteppedScheduler) -> None:
    scheduler = stepped.scheduler
    assert not scheduler.waiting_queue and not scheduler.running_batch.reqs
    assert not scheduler.running_batch.batch_is_full, "whoever waits next would wait for ever"
    assert scheduler.last_batch is scheduler.chunked_req is scheduler._pending_chunked_abort_req is None
    assert not scheduler.result_queue
    scheduler.session_controller.sessions.clear()  # SGLang never closes some (`Conversations.stuck`)
    scheduler.new_token_ratio_tracker.reset()
    stepped.resume()
    assert scheduler.flush_cache(empty_cache=False)
    for kept in (stepped.reqs, stepped.events, stepped.tokenizer.sent, stepped.detokenizer.sent):
        kept.clear()
    stepped._names = itertools.count()


def _empty_by_hand(scheduler: Any) -> None:
    scheduler.waiting_queue.clear()
    scheduler.running_batch = ScheduleBatch(reqs=[], batch_is_full=False)
    scheduler.last_batch = scheduler.chunked_req = scheduler._pending_chunked_abort_req = None
    scheduler.result_queue.clear()
