"""What the invariant checker looks at."""

import pytest
from sglang.srt.session.streaming_session import StreamingSession

from harness import SteppedScheduler
from prompts import prompt


def test_cached_pages_are_found_behind_streaming_sessions(
    stepped: SteppedScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    stepped.finish(stepped.send(prompt(50, 1), 2))
    checker, cache = stepped.loop._checker, stepped.scheduler.tree_cache
    pages = checker._cached_pages()
    assert len(pages) >= 50
    monkeypatch.setattr(stepped.scheduler, "tree_cache", StreamingSession(cache))
    assert checker._cached_pages() == pages
