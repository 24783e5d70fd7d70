"""`sglang-layered bench run`, `show` and `sweep`: options, progress, tables."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

if TYPE_CHECKING:
    from sglang_layered_lab.bench import client_data
    from sglang_layered_lab.bench.record import BenchRecord
    from sglang_layered_lab.bench.sweep import Turn
    from sglang_layered_lab.bench.sweep_spec import SweepSpec

PATH = click.Path(path_type=Path)
RESTART = click.option("--restart", is_flag=True, help="Replace what is there instead of going on with it.")
DRY_RUN = click.option(
    "--dry-run", is_flag=True, help="Say what would be run, and check the spec; start nothing."
)
GOES_ON = "the one that ran is lost. The same command goes on"


@click.command()
@click.argument("spec_path", metavar="SPEC.toml", type=PATH)
@click.option("--out", type=PATH, help="The record.  [default: out/bench/NAME.json]")
@DRY_RUN
@RESTART
def run(spec_path: Path, out: Path | None, dry_run: bool, restart: bool) -> None:
    """Load a server as SPEC.toml says and write one JSON record.

    A record that is there already and was made with the same spec, versions and machine is gone on with: only
    repetitions that it lacks are run.
    """
    from sglang_layered_lab.bench import run as runner
    from sglang_layered_lab.bench.load import Load
    from sglang_layered_lab.bench.spec import read_spec
    from sglang_layered_lab.bench.spec_describe import describe
    from sglang_layered_lab.bench.spec_errors import located
    from sglang_layered_lab.serving import end_servers_on_signals

    end_servers_on_signals()
    console = Console()
    spec = read_spec(spec_path)
    with located(spec_path):
        if dry_run:
            console.print(describe(Load.of(spec)))
            return
        out = out or Path("out") / "bench" / f"{spec.run.name}.json"
        with (
            _said_when_stopped(lambda: kept_text(out, spec.run.repetitions)),
            _bar(console, spec.run.name, spec.load.num_requests) as show_bar,
        ):

            def tell(seen: "client_data.Progress") -> None:
                text = f"{seen.num_open} open, {seen.num_failed} failed, {seen.num_tokens} tokens"
                show_bar(completed=seen.num_done, total=seen.num_requests, description=text)

            record = runner.run(spec, out, restart=restart, tell=tell)
    _print_record(record, console)
    console.print(f"wrote {out}", highlight=False, soft_wrap=True)


def kept_text(out: Path, repetitions: int) -> str:
    """What a stopped run leaves."""
    from sglang_layered_lab.bench.record import BenchRecord

    done = len(BenchRecord.read(out).repetitions) if out.exists() else 0
    kept = f"{out} keeps {done} of {repetitions} repetitions" if done else "no repetition was finished"
    return f"{kept}; {GOES_ON}"


@click.command()
@click.argument("record_path", metavar="RECORD.json", type=PATH)
def show(record_path: Path) -> None:
    """Print the metrics of a record, computed anew from its raw times."""
    from sglang_layered_lab.bench.record import BenchRecord

    _print_record(BenchRecord.read(record_path), Console())


def _print_record(record: "BenchRecord", console: Console) -> None:
    from sglang_layered_lab.bench.show import tables

    console.print(*tables(record), sep="\n")


@click.command()
@click.argument("spec_paths", metavar="SWEEP.toml...", nargs=-1, required=True, type=PATH)
@click.option(
    "--out",
    type=PATH,
    default=Path("out/sweeps"),
    show_default=True,
    help="A folder of the sweep's name is made in it.",
)
@DRY_RUN
@RESTART
@click.option(
    "--budget-s",
    type=click.FloatRange(min=0, min_open=True),
    help="Stop as Ctrl-C does after so many seconds; the same command goes on.",
)
def sweep(
    spec_paths: tuple[Path, ...], out: Path, dry_run: bool, restart: bool, budget_s: float | None
) -> None:
    """Run arms against each other: every arm has its turn in every round, at every point of the grid.

    Several sweeps share servers that are equal. What is there already is gone on with.
    """
    from sglang_layered_lab.bench.spec_errors import located
    from sglang_layered_lab.bench.sweep import check_cells, pool_for, run_sweep
    from sglang_layered_lab.bench.sweep_spec import read_sweep
    from sglang_layered_lab.serving import end_servers_on_signals

    end_servers_on_signals()
    console = Console()
    specs = [read_sweep(path) for path in spec_paths]
    if dry_run:
        for path, spec in zip(spec_paths, specs, strict=True):
            with located(path):
                check_cells(spec)
            console.print(_outline(spec))
        return
    kept = f"turns that ended are kept in {out}, {GOES_ON}"
    with _said_when_stopped(lambda: kept), _stopped_after(budget_s), pool_for(specs, out) as pool:
        for path, spec in zip(spec_paths, specs, strict=True):
            folder = out / spec.settings.name
            with located(path), _turns_told(spec, console) as tell:
                run_sweep(spec, folder, pool=pool, restart=restart, tell=tell)
            console.print(f"wrote {folder}", highlight=False, soft_wrap=True)


@contextmanager
def _turns_told(spec: "SweepSpec", console: Console) -> "Iterator[Callable[[Turn], None]]":
    """A progress bar; without a terminal, a line a turn."""
    name = spec.settings.name
    with _bar(console, name, len(spec.cells) * spec.settings.rounds) as show_bar:

        def tell(turn: "Turn") -> None:
            text = f"{name}: {turn.cell.spec.run.name}, round {turn.round_index + 1}"
            show_bar(completed=turn.number - 1, description=text)
            if not console.is_terminal:
                console.print(f"{turn.number}/{turn.total} {text}", highlight=False, soft_wrap=True)

        yield tell


def _outline(spec: "SweepSpec") -> Table:
    settings = spec.settings
    title = f"{settings.name}: {settings.rounds} round(s), {len(spec.cells)} cells"
    table = Table("cell", "mode", "load", "server flags of the arm", title=title, title_justify="left")
    for cell in spec.cells:
        load = cell.spec.load
        rate = f"{load.rate_per_s:g}/s" if load.rate_per_s else f"{load.num_clients} clients"
        table.add_row(cell.spec.run.name, cell.arm.mode, f"{load.arrivals}, {rate}", " ".join(cell.arm.flags))
    return table


@contextmanager
def _bar(console: Console, name: str, total: int | None) -> Iterator[Callable[..., None]]:
    """A progress bar in a terminal; gives a function that takes the values of `Progress.update`."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        bar = bars.add_task(name, total=total)

        def show_bar(**values: Any) -> None:
            bars.update(bar, **values)

        yield show_bar


@contextmanager
def _stopped_after(budget_s: float | None) -> Iterator[None]:
    """Stop as Ctrl-C does when `budget_s` seconds are over; None: never. For hosts that cut commands off."""
    before = signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
    signal.setitimer(signal.ITIMER_REAL, budget_s or 0.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def _said_when_stopped(kept: Callable[[], str]) -> Iterator[None]:
    """Say on stderr what is kept and what is lost, and go on stopping; `kept` is asked only then."""
    try:
        yield
    except KeyboardInterrupt:
        click.echo(kept(), err=True)
        raise
