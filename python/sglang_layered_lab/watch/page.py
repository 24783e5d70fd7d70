"""A page of the terminal: head, parts, and greyed when the server is gone; scrape after scrape into pages."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.panel import Panel
from rich.segment import Segment
from rich.style import Style
from rich.table import Table
from rich.text import Text

from sglang_layered.errors import LabError
from sglang_layered_lab.watch import text
from sglang_layered_lab.watch.sample import Sample
from sglang_layered_lab.watch.source import Window
from sglang_layered_lab.watch.view import QUANTILES, Part, View, view

WIDE = 140  # columns from which two panels fit side by side
QUANTILE_WIDTH = 15  # as wide as they get, so that columns stay where they are
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
        tables = {name: _table(name, part) for name, part in self.frame.view.parts.items()}
        wide = self.panels and options.max_width >= WIDE
        body = _columns(tables) if wide else Group(*tables.values())
        yield Greyed(body) if self.frame.gone else body


def _head(frame: Frame) -> list[Text]:
    lines = [Text.assemble(("sglang-layered top ", "bold cyan"), frame.url)]
    if frame.view:
        lines.append(Text("  |  ".join(frame.view.server)))
    if frame.gone:
        age = f"; these numbers are {text.seconds(round(frame.age_s, 1))} old" if frame.view else ""
        lines.append(Text(f"gone: {frame.gone}{age}; trying again", style="bold red"))
    elif frame.view is None:
        lines.append(Text("first scrape done; rates come with the second"))
    else:
        restarted = "; restarted in it: counted from then" if frame.view.restarted else ""
        lines.append(Text(f"window {text.seconds(round(frame.view.window_s, 1))}{restarted}"))
    return lines


def _columns(tables: dict[str, Table]) -> Group:
    panels = {name: Panel(table, padding=0) for name, table in tables.items()}
    below = [panels.pop("ranks")] if "ranks" in panels else []
    right = list(panels).index("experts")
    grid = Table.grid(expand=True)
    grid.add_column(ratio=18)
    grid.add_column(ratio=17)
    grid.add_row(Group(*list(panels.values())[:right]), Group(*list(panels.values())[right:]))
    return Group(grid, *below)


def _table(name: str, part: Part) -> Table:
    """A part with its name as the first column's head."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column(name, header_style="bold cyan", no_wrap=True, min_width=9)
    for head in part.columns or (part.off,):
        table.add_column(head, min_width=QUANTILE_WIDTH if head in QUANTILES else None)
    for row, cells in part.rows:
        shown = zip(part.columns.values(), cells, strict=True)
        table.add_row(row, *(show(cell) for show, cell in shown))
    return table


def frames(
    url: str, scrape: Callable[[], Sample], wait: Callable[[], None], now_s: Callable[[], float]
) -> Iterator[Frame]:
    """A frame at once and one after each `wait()`, for ever; `now_s` is the clock of the samples.

    Raises:
        LabError: the first scrape failed. Later failures are shown, and the next scrape may succeed.
    """
    window = Window().add(scrape())
    yield Frame(url, None)
    while True:
        wait()
        gone = ""
        try:
            window = window.add(scrape())
        except LabError as error:
            gone = str(error)
        numbers = view(*window.pair) if window.pair else None
        yield Frame(url, numbers, gone, now_s() - window.samples[-1].time_s)
