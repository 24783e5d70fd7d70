"""A page of the terminal: head, parts, and greyed when the server is gone; scrape after scrape into pages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.panel import Panel
from rich.segment import Segment
from rich.style import Style
from rich.table import Table
from rich.text import Text

from sglang_layered.errors import TopError
from sglang_layered_lab.watch import text
from sglang_layered_lab.watch.sample import Sample
from sglang_layered_lab.watch.sections import sections
from sglang_layered_lab.watch.source import Window
from sglang_layered_lab.watch.view import View, view

WIDE = 140  # columns from which two panels fit side by side
GREY = Style(color="bright_black", bold=False)


@dataclass(frozen=True, slots=True)
class Frame:
    """What the page shows at one moment.

    `view` is None before the second scrape. `gone` says why the last scrape failed, "" if it did not; the
    numbers are `age_s` old then.
    """

    url: str
    view: View | None
    gone: str = ""
    age_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Greyed:
    """Draws another renderable in grey."""

    inner: RenderableType

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Replace all colours."""
        return Segment.apply_style(console.render(self.inner, options), post_style=GREY)


@dataclass(frozen=True, slots=True)
class Page:
    """One frame, in two columns of panels where the terminal is wide and `panels` allows."""

    frame: Frame
    panels: bool = True

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Head, then the parts."""
        yield from _head(self.frame)
        if self.frame.view is None:
            return
        parts = sections(self.frame.view)
        wide = self.panels and options.max_width >= WIDE
        body = _columns(parts, len(self.frame.view.ranks) > 0) if wide else Group(*parts)
        yield Greyed(body) if self.frame.gone else body


def _head(frame: Frame) -> list[Text]:
    lines = [Text.assemble(("sglang-layered top ", "bold cyan"), frame.url)]
    if frame.view:
        lines.append(Text(_server(frame.view)))
    if frame.gone:
        age = f"; these numbers are {text.seconds(round(frame.age_s, 1))} old" if frame.view else ""
        lines.append(Text(f"gone: {frame.gone}{age}; trying again", style="bold red"))
    elif frame.view is None:
        lines.append(Text("first scrape done; rates come with the second"))
    else:
        restarted = "; restarted in it: counted from then" if frame.view.restarted else ""
        lines.append(Text(f"window {text.seconds(round(frame.view.window_s, 1))}{restarted}"))
    return lines


def _server(view: View) -> str:
    server = view.server
    parts = [
        "model " + (", ".join(server.models) or "unknown"),
        "mode " + (" and ".join(server.modes) or "unknown (no sglang:prefill_mode_info: not patched?)"),
    ]
    if server.strategies:
        parts.append("strategy " + ", ".join(server.strategies))
    if server.versions:
        parts.append("version " + ", ".join(server.versions))
    return "  |  ".join(parts)


def _columns(parts: list[Table], with_ranks: bool) -> Group:
    panels = [Panel(part, padding=0) for part in parts]
    last = [panels.pop()] if with_ranks else []
    grid = Table.grid(expand=True)
    grid.add_column(ratio=18)
    grid.add_column(ratio=17)
    grid.add_row(Group(*panels[:4]), Group(*panels[4:]))
    return Group(grid, *last)


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
