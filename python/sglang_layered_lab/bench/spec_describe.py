"""What a spec would run, for `--dry-run`: the very requests that would be drawn, counted and not sent."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Group
from rich.table import Table
from rich.text import Text

from sglang_layered_lab.bench.arrivals import measuring_window
from sglang_layered_lab.bench.lengths import FileLengths, RequestSize
from sglang_layered_lab.bench.load import Load
from sglang_layered_lab.bench.workload import prefix_of, shared_tokens, sizes_of

QUANTILES = (0.5, 0.9, 0.99)


@dataclass(frozen=True, slots=True)
class Outline:
    """Figures of one repetition; times in s. The times of a closed load are its server's."""

    last_due_s: float | None
    window_s: tuple[float, float] | None
    num_measured: int | None
    sizes: tuple[RequestSize, ...]  # of every request
    shared_tokens: int  # of the sizes' prompt tokens those that are a shared prefix's


def outline(load: Load, repetition: int = 0) -> Outline:
    """Draw arrivals and sizes of a repetition.

    Raises:
        SpecError: nothing would be measured, or the prompts are too long.
    """
    spec, times = load.spec, load.due_s(repetition)
    sizes = sizes_of(spec, load.lengths, repetition, len(times))
    prefixes, shared = spec.workload.prefixes, 0
    for index, size in enumerate(sizes if prefixes else ()):
        if prefixes and prefix_of(prefixes, spec.workload_seed, repetition, index) is not None:
            shared += shared_tokens(size.prompt_tokens, prefixes.prefix_tokens)
    if spec.load.is_closed:
        return Outline(None, None, None, sizes, shared)
    start_s, end_s = measuring_window(spec.load, times)
    num_measured = sum(start_s <= each < end_s for each in times)
    return Outline(times[-1], (start_s, end_s), num_measured, sizes, shared)


def describe(load: Load) -> Group:
    """Tables for a terminal: what would run, and the lengths of the first repetition's requests."""
    drawn = outline(load)
    return Group(_facts(load, drawn), _lengths_table(drawn))


def _facts(load: Load, drawn: Outline) -> Table:
    spec, lengths = load.spec, load.lengths
    title = f"{spec.run.name}: {spec.run.repetitions} repetition(s), seed {spec.run.seed}"
    table = Table("", "", title=title, show_header=False)
    for section in ("server", "load"):
        table.add_row(section, _said(spec.to_json()[section]))
    table.add_row("requests", f"{len(drawn.sizes):,} each repetition")
    if drawn.last_due_s is not None and drawn.window_s is not None:
        start_s, end_s = drawn.window_s
        measured = f"due from {start_s:.1f} s to {end_s:.1f} s: {drawn.num_measured:,} requests"
        table.add_row("last request due", f"{drawn.last_due_s:.1f} s (cut off at {spec.run.timeout_s:g} s)")
        table.add_row("measured", measured)
    prompts = sum(size.prompt_tokens for size in drawn.sizes)
    table.add_row("prompt tokens", f"{prompts:,}, {drawn.shared_tokens:,} of them in shared prefixes")
    table.add_row("output tokens", f"{sum(size.output_tokens for size in drawn.sizes):,}")
    if isinstance(lengths, FileLengths) and lengths.num_left_out:
        table.add_row("rows left out", f"{lengths.num_left_out:,}, above max_total_tokens")
    limits = {"TTFT": spec.slo.ttft_ms, "every TBT": spec.slo.tbt_ms}
    shown = [f"{name} at most {value:g} ms" for name, value in limits.items() if value is not None]
    table.add_row("limits", ", ".join(shown) or "none")
    return table


def _said(values: Mapping[str, Any]) -> Text:
    """A section's keys on one line, as its record has them."""
    words = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            value = [f"{name}={each}" for name, each in value.items()]
        shown = " ".join(value) if isinstance(value, list) else str(value)
        words += [f"{key}: {shown}"] if shown else []
    return Text(", ".join(words))


def _lengths_table(drawn: Outline) -> Table:
    names = [f"p{round(quantile * 100)}" for quantile in QUANTILES]
    table = Table("tokens a request", "mean", "min", *names, "max")
    for name in ("prompt", "output"):
        tokens = [getattr(size, f"{name}_tokens") for size in drawn.sizes]
        figures = [np.mean(tokens), min(tokens), *np.quantile(tokens, QUANTILES), max(tokens)]
        table.add_row(name, *(f"{figure:,.0f}" for figure in figures))
    return table
