"""`sglang-layered bench lengths`: TTFT of short and of long prompts apart, as a table."""

from pathlib import Path

import click


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--short",
    "most_tokens",
    type=click.IntRange(1),
    default=512,
    show_default=True,
    help="Most tokens of a short prompt.",
)
def lengths(folder: Path, most_tokens: int) -> None:
    """TTFT of short and of long prompts in the arms of a sweep, over the requests of all rounds.

    The last column is the worst gap of the streams beside them: median of the rounds, and least to greatest.
    """
    from rich.console import Console
    from rich.table import Table

    from sglang_layered_lab.bench.sweep_result import SweepResult

    console = Console(width=None if Console().is_terminal else 170)
    table = Table(
        "point", "arm", "prompts", "requests", "failed", "TTFT p50 ms", "p90", "p99", "worst gap ms"
    )
    for cell in SweepResult.read(folder).cells:
        point = ", ".join(f"{key.rpartition('.')[2]}={value}" for key, value in cell.point.items()) or "-"
        worst = 1e3 * cell.rounds.beside_worst.dropna()
        gap = "-" if worst.empty else f"{worst.median():.0f} ({worst.min():.0f} to {worst.max():.0f})"
        is_short = cell.due.prompt_tokens <= most_tokens
        for name, part in (("short", cell.due[is_short]), ("long", cell.due[~is_short])):
            if len(part):
                ttfts = (f"{1e3 * part.ttft_s.quantile(share):.0f}" for share in (0.5, 0.9, 0.99))
                counts = (str(len(part)), str(int(part.is_failed.sum())))
                table.add_row(point, cell.label, name, *counts, *ttfts, gap)
    console.print(table)
