"""Times that a step policy decides by: rank 0's clock on every rank, and when each request was heard last."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from sglang_layered.scheduler.heard import Heard
from sglang_layered.scheduler.news import News, NewsDesk


def test_news_carry_each_duration_once_and_the_start_once() -> None:
    desk = NewsDesk()
    desk.step_took(0.5)
    desk.step_took(0.25)
    news = desk.take(has_other_ranks=False)
    assert news.durations_s == (0.5, 0.25)
    assert desk.take(has_other_ranks=False).durations_s == ()
    other = NewsDesk()
    other.step_took(9.0)  # this rank's own time, which nobody asks for
    other.publish()
    other.latest = news
    assert other.take(has_other_ranks=True) == news
    assert other.take(has_other_ranks=True) == News(news.now_s)


def test_the_longest_silence_is_that_of_requests_that_spoke() -> None:
    old, late, fresh, unknown = (Asker() for _ in range(4))
    heard = Heard()
    heard.results_are_due([_outcome("prompt", old, late)])
    assert heard.at(1.0) is None and heard.at(1.5) is None
    heard.results_are_due([_outcome("decode", old), _outcome("prompt", fresh)])
    assert heard.at(2.0) == 1.0
    assert heard.first_s([old, late, unknown], 0.5) == 1.0
    assert heard.first_s([old, late], 1.0) == 2.0
    assert heard.first_s([late], 1.0) is None and heard.first_s([unknown], 0.0) is None
    heard.results_are_due([_outcome("decode", late, unknown)])
    assert heard.at(4.0) == 3.0
    heard.results_are_due([_outcome("decode", old, late, fresh, unknown)])
    assert heard.at(4.5) == 2.5
    heard.results_are_due([_outcome("decode", old, late, fresh, unknown)])
    assert heard.at(4.75) == 0.25 and heard.first_s([old, late, fresh, unknown], 0.0) == 4.75
    heard.results_are_due([_outcome("decode", old, late)])
    assert heard.at(5.0) == 0.25
    assert heard.first_s([old, late], 0.0) == 5.0 and heard.first_s([old, fresh], 0.0) == 4.75


class Asker:
    """Stands in for a request."""


def _outcome(kind: str, *reqs: Any) -> Any:
    mode = SimpleNamespace(is_decode=lambda: kind == "decode")
    return SimpleNamespace(seen=SimpleNamespace(forward_mode=mode, reqs=reqs))
