"""`sglang-layered bench limits`: arms that name a limit against the best that keep it, as a table."""

from pathlib import Path

import click


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--share",
    type=click.FloatRange(0, 1),
    default=0.99,
    show_default=True,
    help="Part of the gaps that an arm must hold to keep a limit.",
)
def limits(folder: Path, share: float) -> None:
    """Compare arms of a sweep that keep a limit on the time between tokens with those that do not know it.

    Each is set beside the arm of every other mode with the lowest TTFT among those that keep its limit. The
    last column says whether the TTFT is at most 1.05 times that arm's, by the end of the 95 % interval.
    """
    from rich.console import Console
    from rich.table import Table

    from sglang_layered_lab.bench.limits import limit_rows
    from sglang_layered_lab.bench.sweep_result import SweepResult

    console = Console(width=None if Console().is_terminal else 170)
    header = ("point", "limit ms", "arm", "gaps inside", "TTFT ms")
    table = Table(*header, "against", "its TTFT ms", "ratio", "<= 1.05")
    for row in limit_rows(SweepResult.read(folder), share):
        point = ", ".join(f"{key.rpartition('.')[2]}={value}" for key, value in row.point.items())
        own = row.own
        head = (point, f"{1e3 * row.limit_s:g}", own.arm, f"{own.share:.1%}", f"{1e3 * own.ttft_s:.0f}")
        for rival in row.rivals:
            over = "-" if rival.over is None else rival.over.as_times()
            ttft_ms = f"{1e3 * rival.kept.ttft_s:.0f}"
            table.add_row(*head, f"{rival.mode}: {rival.kept.arm}", ttft_ms, over, rival.verdict)
        if not row.rivals:
            table.add_row(*head, "none keeps it", "-", "-", "-")
    console.print(table)
