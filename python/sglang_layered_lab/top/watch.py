"""Scrape after scrape into frames: keeps the last numbers when the server is gone. It draws nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from sglang_layered.errors import TopError
from sglang_layered_lab.top.page import Frame
from sglang_layered_lab.top.sample import Sample
from sglang_layered_lab.top.view import view
from sglang_layered_lab.top.window import Window


def frames(
    url: str, scrape: Callable[[], Sample], wait: Callable[[], None], now_s: Callable[[], float]
) -> Iterator[Frame]:
    """A frame at once and one after each `wait()`, for ever; `now_s` is the clock of the samples.

    Raises:
        TopError: the first scrape failed. Later failures are shown, and the next scrape may succeed.
    """
    window = Window().add(scrape())
    yield Frame(url, None)
    while True:
        wait()
        gone = ""
        try:
            window = window.add(scrape())
        except TopError as error:
            gone = str(error)
        numbers = view(*window.pair) if window.pair else None
        yield Frame(url, numbers, gone, now_s() - window.samples[-1].time_s)
