"""`scripts/soak.sh`: reads options, runs a soak, says what was violated, and nothing more."""

from __future__ import annotations

import signal
from pathlib import Path

import click
from rich.console import Console

from soak_plan import SoakSpec
from soak_record import print_table, run_soak
from soak_scenes import SCENES

NUM_SHOWN = 10


@click.command()
@click.argument("num_requests", type=click.IntRange(0), default=10_000)
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/soak"), show_default=True)
@click.option("--record", type=click.Path(path_type=Path), help="Default: record-NUM_REQUESTS.json in OUT.")
@click.option("--scene", "scenes", multiple=True, type=click.Choice(SCENES), help="Default: all scenes.")
def soak(num_requests: int, seed: int, out: Path, record: Path | None, scenes: tuple[str, ...]) -> None:
    """Send NUM_REQUESTS (default 10000) disturbed requests to a layered server and check all answers.

    A soak opens with scenes that are brought about on purpose; with 0 requests these are all.
    """
    for ending in (signal.SIGTERM, signal.SIGHUP):  # these, too, end the servers as Ctrl-C does
        signal.signal(ending, signal.default_int_handler)
    console = Console()
    done = run_soak(SoakSpec.of(num_requests, seed), out, console, scenes or None)
    path = record or out / f"record-{num_requests}.json"
    done.write(path)
    print_table(done, console)
    console.print(f"Record: {path}")
    if done.violations:
        shown = "\n".join(f"  {each}" for each in done.violations[:NUM_SHOWN])
        if log := done.played.at_trouble.get("server log"):
            shown += f"\nThe server's log ends with\n{log}"
        raise click.ClickException(f"{len(done.violations)} violations, the first are\n{shown}")


if __name__ == "__main__":
    soak()
