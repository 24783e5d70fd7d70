"""`sglang-layered top`: options, and where the frames go. It computes no numbers."""

import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice
from typing import Any

import click
from rich.console import Console
from rich.live import Live

from sglang_layered.errors import LabError
from sglang_layered_lab.watch.page import Frame, Page, frames
from sglang_layered_lab.watch.source import Scraper

# No label of a server is markup.
TEXT_AS_IT_IS: dict[str, Any] = {"markup": False, "emoji": False, "highlight": False}


@click.command()
@click.argument("url", default="http://127.0.0.1:30000")
@click.option(
    "--interval",
    "interval_s",
    type=click.FloatRange(min=0.1),
    default=1.0,
    show_default=True,
    help="Seconds between two scrapes.",
)
@click.option("--once", is_flag=True, help="Two scrapes, one page of plain text, then stop.")
@click.option(
    "--plain", is_flag=True, help="Page after page as plain text; so it is where there is no terminal."
)
def top(url: str, interval_s: float, once: bool, plain: bool) -> None:
    """Watch the server at URL: steps, cohorts, requests, latency, experts, energy, SLOs.

    Reads its metrics page only (start the server with --enable-metrics). URL is that of a server, or of a
    page: http://ROUTER:PORT/engine_metrics shows all servers of SGLang's router. Quantiles are interpolated
    in their bucket, whose bound follows in brackets. Ctrl-C ends it.
    """
    console = Console(**TEXT_AS_IT_IS)
    with Scraper(url) as scraper:
        stream = frames(scraper.url, scraper.scrape, lambda: time.sleep(interval_s), time.monotonic)
        with suppress(KeyboardInterrupt):
            if once:
                _print(_checked(islice(stream, 1, 2)))
            elif plain or not console.is_terminal or console.is_dumb_terminal:
                _print(islice(stream, 1, None))
            else:
                _draw(console, stream)


def _checked(stream: Iterable[Frame]) -> Iterator[Frame]:
    for frame in stream:
        if frame.gone:
            raise LabError(frame.gone)
        yield frame


def _print(stream: Iterable[Frame]) -> None:
    console = Console(no_color=True, force_terminal=False, **TEXT_AS_IT_IS)
    for frame in stream:
        console.print(Page(frame, panels=False))
        console.print()


def _draw(console: Console, stream: Iterable[Frame]) -> None:
    with Live(console=console, screen=True, auto_refresh=False) as live:
        for frame in stream:
            live.update(Page(frame), refresh=True)
