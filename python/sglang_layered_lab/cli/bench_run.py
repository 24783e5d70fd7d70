"""`sglang-layered bench run` and `bench show`: options, progress, tables."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from sglang_layered_lab.cli.stopped import said_when_stopped

if TYPE_CHECKING:
    from sglang_layered_lab.bench import client_data
    from sglang_layered_lab.bench.record import BenchRecord
    from sglang_layered_lab.bench.spec import BenchSpec


@click.command()
@click.argument("spec_path", metavar="SPEC.toml", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="The record.  [default: out/bench/NAME.json]")
@click.option("--dry-run", is_flag=True, help="Say what would be run, and check the spec; start nothing.")
@click.option("--restart", is_flag=True, help="Replace the record that is there instead of going on with it.")
def run(spec_path: Path, out: Path | None, dry_run: bool, restart: bool) -> None:
    """Load a server as SPEC.toml says and write one JSON record.

    A record that is there already and was made with the same spec, versions and machine is gone on with: only
    repetitions that it lacks are run.
    """
    from sglang_layered_lab.bench import run as runner
    from sglang_layered_lab.bench.spec import read_spec
    from sglang_layered_lab.bench.spec_describe import describe
    from sglang_layered_lab.bench.spec_errors import located
    from sglang_layered_lab.serving import end_servers_on_signals

    end_servers_on_signals()
    console = Console()
    spec = read_spec(spec_path)
    with located(spec_path):
        if dry_run:
            runner.Load.of(spec)
            console.print(describe(spec))
            return
        out = out or Path("out") / "bench" / f"{spec.run.name}.json"
        with said_when_stopped(lambda: kept_text(out, spec.run.repetitions)):
            record = _run(spec, out, restart, console)
    print_record(record, console)
    console.print(f"wrote {out}", highlight=False, soft_wrap=True)


def kept_text(out: Path, repetitions: int) -> str:
    """What a stopped run leaves."""
    from sglang_layered_lab.bench.record import BenchRecord

    done = len(BenchRecord.read(out).repetitions) if out.exists() else 0
    kept = f"{out} keeps {done} of {repetitions} repetitions" if done else "no repetition was finished"
    return f"{kept}; the one that ran is lost. The same command goes on"


def _run(spec: BenchSpec, out: Path, restart: bool, console: Console) -> BenchRecord:
    """Run with a progress bar."""
    from sglang_layered_lab.bench import run as runner

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        bar = bars.add_task(spec.run.name, total=spec.load.num_requests)

        def tell(seen: client_data.Progress) -> None:
            text = f"{seen.num_open} open, {seen.num_failed} failed, {seen.num_tokens} tokens"
            bars.update(bar, completed=seen.num_done, total=seen.num_requests, description=text)

        return runner.run(spec, out, restart=restart, tell=tell)


@click.command()
@click.argument("record_path", metavar="RECORD.json", type=click.Path(path_type=Path))
def show(record_path: Path) -> None:
    """Print the metrics of a record, computed anew from its raw times."""
    from sglang_layered_lab.bench.record import BenchRecord

    print_record(BenchRecord.read(record_path), Console())


def print_record(record: BenchRecord, console: Console) -> None:
    """One column a repetition."""
    from sglang_layered_lab.bench.show import tables

    for table in tables(record):
        console.print(table)
