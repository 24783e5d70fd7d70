"""What the quickstart shows while it runs: on a terminal the modes beside each other, else a line a phase.

The board draws what the client tells four times a second, so its times are that coarse; records have exact
ones. A mode that has run is played again, in true time, beside the one that runs now.
"""

import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.live import Live
from rich.panel import Panel
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from sglang_layered_lab.bench.client import PROGRESS_S
from sglang_layered_lab.bench.client_data import Progress

MIN_WIDTH = 72  # columns of a terminal; a narrower one gets plain lines
Marks = tuple[str, str, str]
MARKS: Marks = ("·", "▪", "■")  # no token, one, more
ASCII_MARKS: Marks = (".", "o", "O")
STILL_S = 0.5  # a pause that is shown as one
HUES = {"whole": "white", "mixed": "yellow", "layered": "cyan"}


@dataclass(slots=True)
class Course:
    """What was told of a mode's last repetition, from the sending of the prompt on."""

    label: str
    told: list[Progress] = field(default_factory=list)
    figures: str = ""

    def until(self, now_s: float | None) -> list[Progress]:
        """What had been told by then; all of it for None."""
        return self.told if now_s is None else self.told[: bisect_right(self.told, now_s, key=_now_s)]


class Board:
    """A context manager; `labels` are the modes in the order in which they run."""

    def __init__(self, console: Console, labels: Mapping[str, str], num_streams: int) -> None:
        self.console = console
        self._num_streams = num_streams
        self._courses = {mode: Course(label) for mode, label in labels.items()}
        self._running: str | None = None
        self._spinner: Spinner | None = None  # what goes on now
        fits = console.is_terminal and not console.is_dumb_terminal and console.width >= MIN_WIDTH
        self._live = Live(self, console=console, refresh_per_second=round(1 / PROGRESS_S)) if fits else None

    def __enter__(self) -> "Board":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._spinner = None
        if self._live:
            self._live.stop()

    @contextmanager
    def phase(self, what: str) -> Iterator[None]:
        """Say what is going on, and afterwards how long it took."""
        start_s = time.perf_counter()
        self._spinner = Spinner("line", text=what)
        yield
        self._spinner = None
        self.say(f"{what}: {time.perf_counter() - start_s:.1f} s")

    def say(self, *lines: str) -> None:
        """Print lines as they are, above the board."""
        for line in lines:
            self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def running(self, mode: str) -> Iterator[Callable[[Progress], None] | None]:
        """Show a mode's repetition; gives who is to be told of it, None where nothing is shown."""
        if self._live is None:
            yield None
            return
        self._courses[mode].told, self._running = [], mode
        try:
            yield self._courses[mode].told.append
        finally:
            self._running = None

    def measured(self, mode: str, ttft_s: float, worst_gap_s: float) -> None:
        """Show the figures of a mode's repetition that was just measured."""
        self._courses[mode].figures = f"TTFT {ttft_s:.2f} s, gap {1000 * worst_gap_s:.0f} ms"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        told = self._courses[self._running].told if self._running else []
        now_s = told[-1].now_s if told else None  # the prompt is sent when the conversations run
        marks = ASCII_MARKS if options.ascii_only else MARKS
        grid = Table.grid(expand=True)
        for _ in self._courses:
            grid.add_column(ratio=1)
        width = options.max_width // len(self._courses) - 4 - len("1 ")
        panels = []
        for mode, course in self._courses.items():
            told, hue = course.until(now_s), HUES.get(mode, "")
            state = "the conversations begin" if mode == self._running else "not yet"
            lines = [Text(course.label, style="dim"), _prompt(told) if told else Text(state, style="dim")]
            lines += [_strip(told, each, width, marks, hue) for each in range(self._num_streams)]
            lines += [_pause(told, now_s) if told else Text(""), Text(course.figures, style="bold")]
            panels.append(Panel(Group(*map(_in_one_line, lines)), title=mode, border_style=hue))
        grid.add_row(*panels)
        yield grid
        none, one, more = marks
        legend = f"  {none} no token in {PROGRESS_S} s   {one} one   {more} more, of each conversation"
        yield Text(legend, style="dim", no_wrap=True, overflow="ellipsis")
        if self._spinner:
            yield self._spinner


def _in_one_line(line: Text) -> Text:
    line.no_wrap, line.overflow = True, "ellipsis"
    return line


def _prompt(told: list[Progress]) -> Text:
    if not told[-1].num_tokens:
        return Text(f"prompt waits {told[-1].now_s:.1f} s", style="bold red")
    return Text(f"prompt: {told[-1].num_tokens} tokens came", style="green")


def _strip(told: list[Progress], number: int, width: int, marks: Marks, hue: str) -> Text:
    """A conversation: a mark for what came between two moments, the latest at the right."""
    line = Text(f"{number + 1} ", style="dim")
    for before, after in pairwise(told[-width - 1 :]):
        count = min(after.background[number] - before.background[number], len(marks) - 1)
        line.append(marks[count], style=hue if count else "dim")
    return line


def _pause(told: list[Progress], now_s: float | None) -> Text:
    """How long nobody has had a token."""
    if now_s is None or now_s > told[-1].now_s + STILL_S:
        return Text(f"ended after {told[-1].now_s:.1f} s", style="dim")
    came = next((each for each in told if each.background == told[-1].background), told[-1])
    pause_s = told[-1].now_s - came.now_s
    if pause_s < STILL_S:
        return Text("tokens are coming")
    return Text(f"no token for {pause_s:.1f} s", style="bold red")


def _now_s(progress: Progress) -> float:
    return progress.now_s
