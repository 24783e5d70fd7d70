"""Shows a record as a table and as one last line. Computes ratios only; figures come from `metrics`."""

from __future__ import annotations

from rich.table import Table

from sglang_layered_lab.quickstart.metrics import Spread
from sglang_layered_lab.quickstart.record import Record
from sglang_layered_lab.quickstart.scenario import MODE_TITLES

# Column heading, metric, factor from its unit in Metrics, format.
COLUMNS = (
    ("TTFT (s)", "ttft_s", 1.0, ".2f"),
    ("worst gap (ms)", "worst_gap_s", 1000.0, ".0f"),
    ("median gap (ms)", "median_gap_s", 1000.0, ".0f"),
    ("tokens/s", "tokens_per_s", 1.0, ".1f"),
)

# Ratios of medians on the last line: words, metric, mode above, mode below.
RATIOS = (
    ("TTFT layered/whole", "ttft_s", "layered", "whole"),
    ("TTFT layered/mixed", "ttft_s", "layered", "mixed"),
    ("worst gap layered/mixed", "worst_gap_s", "layered", "mixed"),
)


def table(record: Record) -> Table:
    """One row per mode: median over the repetitions, least to greatest below it."""
    spec = record.scenario
    shown = Table(
        title=f"A {spec.long_prompt_tokens}-token prompt beside {spec.num_running} running conversations",
        caption=f"TTFT of the prompt; gaps and tokens/s of the conversations until its first token; "
        f"median and min - max of {spec.repetitions}",
    )
    shown.add_column("mode", no_wrap=True)
    for heading, *_ in COLUMNS:
        shown.add_column(heading, justify="right", no_wrap=True)
    for run in record.runs:
        summary = run.summary()
        cells = [_cell(summary[metric], factor, form) for _, metric, factor, form in COLUMNS]
        shown.add_row(run.mode, *cells)
    return shown


def legend(record: Record) -> list[str]:
    """Say what each mode's name stands for."""
    return [f"{run.mode}: {MODE_TITLES[run.mode]}" for run in record.runs]


def last_line(record: Record) -> str:
    """`QUICKSTART OK` and the ratios of medians that the modes at hand allow."""
    words = ["QUICKSTART OK"]
    for words_before, metric, above, below in RATIOS:
        above_run, below_run = record.run_of(above), record.run_of(below)
        if above_run and below_run:
            ratio = above_run.summary()[metric].median / below_run.summary()[metric].median
            words.append(f"{words_before} {ratio:.2f}")
    return "  ".join(words)


def _cell(spread: Spread, factor: float, form: str) -> str:
    middle, low, high = (format(value * factor, form) for value in (spread.median, spread.low, spread.high))
    return f"{middle}\n[dim]{low} - {high}[/dim]"
