"""`sglang-layered bench sweep`: options and progress."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from sglang_layered_lab.cli.stopped import said_when_stopped

if TYPE_CHECKING:
    from sglang_layered_lab.bench.sweep import Turn
    from sglang_layered_lab.bench.sweep_spec import SweepSpec


@click.command()
@click.argument(
    "spec_paths", metavar="SWEEP.toml...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("out/sweeps"),
    show_default=True,
    help="A folder of the sweep's name is made in it.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be run, and check the specs; start nothing.")
@click.option("--restart", is_flag=True, help="Replace what is there instead of going on with it.")
def sweep(spec_paths: tuple[Path, ...], out: Path, dry_run: bool, restart: bool) -> None:
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
    kept = f"turns that ended are kept in {out}, the one that ran is lost. The same command goes on"
    with said_when_stopped(lambda: kept), pool_for(specs, out) as pool:
        for path, spec in zip(spec_paths, specs, strict=True):
            folder = out / spec.settings.name
            with located(path), _bar(spec, console) as tell:
                run_sweep(spec, folder, pool=pool, restart=restart, tell=tell)
            console.print(f"wrote {folder}", highlight=False, soft_wrap=True)


@contextmanager
def _bar(spec: SweepSpec, console: Console) -> Iterator[Callable[[Turn], None]]:
    """A progress bar; without a terminal, a line a turn."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        bar = bars.add_task(spec.settings.name, total=len(spec.cells) * spec.settings.rounds)

        def tell(turn: Turn) -> None:
            text = f"{spec.settings.name}: {turn.cell.spec.run.name}, round {turn.round_index + 1}"
            bars.update(bar, completed=turn.number - 1, total=turn.total, description=text)
            if not console.is_terminal:
                console.print(f"{turn.number}/{turn.total} {text}", highlight=False, soft_wrap=True)

        yield tell


def _outline(spec: SweepSpec) -> Table:
    settings = spec.settings
    title = f"{settings.name}: {settings.rounds} round(s), {len(spec.cells)} cells"
    table = Table("cell", "mode", "load", "server flags of the arm", title=title, title_justify="left")
    for cell in spec.cells:
        load = cell.spec.load
        rate = f"{load.rate_per_s:g}/s" if load.rate_per_s else f"{load.num_clients} clients"
        table.add_row(cell.spec.run.name, cell.arm.mode, f"{load.arrivals}, {rate}", " ".join(cell.arm.flags))
    return table
