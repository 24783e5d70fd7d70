"""From raw times to figures, and how they are shown: table, last line, picture.

Of one repetition, with t0 the sending of the long prompt and t1 its first token:

    TTFT        t1 - t0
    gaps        pauses of the running streams that overlap [t0, t1] (`bench.beside`)
    worst gap   the longest of them
    median gap  their median, all running streams taken together
    tokens/s    tokens of all running streams that arrived in (t0, T], divided by T - t0; T ends the last gap
"""

from dataclasses import replace
from pathlib import Path
from statistics import median

from rich.table import Table

from sglang_layered.errors import LabError
from sglang_layered_lab.bench.beside import pauses_beside
from sglang_layered_lab.bench.pictures import Picture, pictures_at
from sglang_layered_lab.bench.record import Repetition
from sglang_layered_lab.bench.sweep_result import CellResult, SweepResult
from sglang_layered_lab.bench.trace import RequestTrace

COLUMNS = {  # of the table: metric, heading, factor from its unit, format
    "ttft_s": ("TTFT (s)", 1.0, ".2f"),
    "worst_gap_s": ("worst gap (ms)", 1000.0, ".0f"),
    "median_gap_s": ("median gap (ms)", 1000.0, ".0f"),
    "tokens_per_s": ("tokens/s", 1.0, ".1f"),
}
RATIOS = (("TTFT", "ttft_s", "whole"), ("TTFT", "ttft_s", "mixed"), ("worst gap", "worst_gap_s", "mixed"))


def measure(repetition: Repetition) -> dict[str, float]:
    """The figures of one repetition, named as in `COLUMNS`.

    Raises:
        LabError: a request failed, or no running stream was seen before and after the long prompt.
    """
    [long] = repetition.traces
    if long.error is not None or not long.arrivals:
        raise LabError(f"the server failed a request: {long.error or 'it gave no token'}")
    pauses_s = pauses_beside([long], repetition.background)
    if not len(pauses_s):
        raise LabError("no running stream had a token before and after the long prompt was sent")
    gaps_s, end_s = pauses_s[:, 1] - pauses_s[:, 0], float(pauses_s[:, 1].max())
    tokens = sum(_tokens_at(each, end_s) - _tokens_at(each, long.sent_s) for each in repetition.background)
    return {
        "ttft_s": long.arrivals[0].time_s - long.sent_s,
        "worst_gap_s": float(gaps_s.max()),
        "median_gap_s": float(median(gaps_s)),
        "tokens_per_s": tokens / (end_s - long.sent_s),
    }


def _tokens_at(stream: RequestTrace, time_s: float) -> int:
    return max((each.num_tokens for each in stream.arrivals if each.time_s <= time_s), default=0)


def values_of(cell: CellResult, metric: str) -> list[float]:
    """A figure of every repetition of a mode."""
    return [measure(each)[metric] for each in cell.record.repetitions]


def table(result: SweepResult) -> Table:
    """One row per mode: median over the repetitions, least to greatest below it."""
    repetitions = result.cells[0].record.repetitions
    [long], num_running = repetitions[0].traces, len(repetitions[0].background)
    shown = Table(
        title=f"A {long.prompt_tokens}-token prompt beside {num_running} running conversations",
        caption=f"TTFT of the prompt; gaps and tokens/s of the conversations until its first token; "
        f"median and min - max of {len(repetitions)}",
    )
    shown.add_column("mode", no_wrap=True)
    for heading, *_ in COLUMNS.values():
        shown.add_column(heading, justify="right", no_wrap=True)
    for cell in result.cells:
        shown.add_row(cell.mode, *(_shown(values_of(cell, metric), metric) for metric in COLUMNS))
    return shown


def _shown(values: list[float], metric: str) -> str:
    _, factor, form = COLUMNS[metric]
    middle, low, high = (format(factor * value, form) for value in (median(values), min(values), max(values)))
    return f"{middle}\n[dim]{low} - {high}[/dim]"


def last_line(result: SweepResult) -> str:
    """`QUICKSTART OK` and the ratios of medians that the modes at hand allow."""
    cells = {cell.mode: cell for cell in result.cells}
    words = ["QUICKSTART OK"]
    for name, metric, other in RATIOS:
        if "layered" in cells and other in cells:
            ours, theirs = (median(values_of(cells[mode], metric)) for mode in ("layered", other))
            words.append(f"{name} layered/{other} {ours / theirs:.2f}")
    return "  ".join(words)


def draw(result: SweepResult, path: Path) -> str:
    """Write the benchmark's picture of tokens over time as PNG; what it shows."""
    [tokens] = [
        each
        for each in pictures_at(result, {}, result.arms[0])
        if isinstance(each, Picture) and each.stem.endswith("-tokens")
    ]
    replace(tokens, stem=path.stem).save(path.parent)
    return tokens.caption
