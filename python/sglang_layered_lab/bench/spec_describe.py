"""What a spec would run, for `--dry-run`: the very requests that would be drawn, counted and not sent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import Group
from rich.table import Table
from rich.text import Text

from sglang_layered_lab.bench.arrivals import arrival_times, measuring_window, read_timestamps
from sglang_layered_lab.bench.lengths import FileLengths, LengthSource, RequestSize, load_lengths
from sglang_layered_lab.bench.spec import BenchSpec, MakeModelSpec
from sglang_layered_lab.bench.workload import Room, prefix_of, shared_tokens, size_of

QUANTILES = (0.5, 0.9, 0.99)


@dataclass(frozen=True, slots=True)
class Outline:
    """Figures of one repetition; times in s."""

    num_requests: int
    last_due_s: float | None  # None: a closed load, whose times are the server's
    window_s: tuple[float, float] | None
    num_measured: int | None
    sizes: tuple[RequestSize, ...]  # of every request
    shared_tokens: int  # of the sizes' prompt tokens those that are a shared prefix's
    num_left_out: int  # rows of the file of lengths that are too long


def outline(spec: BenchSpec, repetition: int = 0) -> Outline:
    """Draw arrivals and sizes of a repetition.

    Raises:
        SpecError: a file is bad, or nothing would be measured.
    """
    load, lengths = spec.load, load_lengths(spec.workload.lengths, spec.folder)
    num_left_out = lengths.num_left_out if isinstance(lengths, FileLengths) else 0
    if load.is_closed:
        assert load.num_requests is not None  # the spec sees to it
        sizes, shared = _sizes(spec, lengths, repetition, load.num_requests)
        return Outline(load.num_requests, None, None, None, sizes, shared, num_left_out)
    stamps = read_timestamps(load.trace, spec.folder) if load.trace else ()
    times = arrival_times(load, spec.run.seed, repetition=repetition, timestamps=stamps)
    window = measuring_window(load, times)
    measured = sum(window[0] <= each < window[1] for each in times)
    sizes, shared = _sizes(spec, lengths, repetition, len(times))
    return Outline(len(times), times[-1], window, measured, sizes, shared, num_left_out)


def _sizes(
    spec: BenchSpec, lengths: LengthSource, repetition: int, number: int
) -> tuple[tuple[RequestSize, ...], int]:
    seed, prefixes = spec.workload_seed, spec.workload.prefixes
    sizes: list[RequestSize] = []
    shared, room = 0, Room(spec)
    for index in range(number):
        sizes.append(size := size_of(lengths, seed, repetition, index))
        room.take(size.prompt_tokens)
        if prefixes and prefix_of(prefixes, seed, repetition, index) is not None:
            shared += shared_tokens(size.prompt_tokens, prefixes.prefix_tokens)
    return tuple(sizes), shared


def describe(spec: BenchSpec) -> Group:
    """Tables for a terminal: what would run, and the lengths of the first repetition's requests."""
    drawn = outline(spec)
    return Group(_facts(spec, drawn), _lengths_table(drawn))


def _facts(spec: BenchSpec, drawn: Outline) -> Table:
    table = Table(
        "", "", title=f"{spec.run.name}: {spec.run.repetitions} repetition(s), seed {spec.run.seed}"
    )
    table.show_header = False
    table.add_row("server", Text(_server_line(spec)))
    table.add_row("arrivals", Text(_arrivals_line(spec)))
    table.add_row("requests", f"{drawn.num_requests:,} each repetition")
    if drawn.last_due_s is not None:
        table.add_row("last request due", f"{drawn.last_due_s:.1f} s (cut off at {spec.run.timeout_s:g} s)")
    if drawn.window_s is not None:
        start_s, end_s = drawn.window_s
        count = "" if drawn.num_measured is None else f": {drawn.num_measured:,} requests"
        table.add_row("measured", f"due from {start_s:.1f} s to {end_s:.1f} s{count}")
    prompts = sum(size.prompt_tokens for size in drawn.sizes)
    outputs = sum(size.output_tokens for size in drawn.sizes)
    table.add_row("prompt tokens", f"{prompts:,}, {drawn.shared_tokens:,} of them in shared prefixes")
    table.add_row("output tokens", f"{outputs:,}")
    if drawn.num_left_out:
        table.add_row("rows left out", f"{drawn.num_left_out:,}, above max_total_tokens")
    limits = {"TTFT": spec.slo.ttft_ms, "every TBT": spec.slo.tbt_ms}
    shown = [f"{name} at most {value:g} ms" for name, value in limits.items() if value is not None]
    table.add_row("limits", ", ".join(shown) or "none")
    return table


def _server_line(spec: BenchSpec) -> str:
    server = spec.server
    if server.url is not None:
        return f"attach to {server.url}"
    model = server.model
    if isinstance(model, MakeModelSpec):
        model = f"{model.arch} {model.preset}, made here,"
    return " ".join(
        [f"start {model}", *(f"{key}={value}" for key, value in server.env.items()), *server.flags]
    )


def _arrivals_line(spec: BenchSpec) -> str:
    load = spec.load
    if load.is_closed:
        line = f"closed, {load.num_clients} clients"
    elif load.trace is not None:
        line = f"replay of {load.trace.file} at speed {load.trace.speed:g}"
    else:
        line = f"{load.arrivals}, {load.rate_per_s:g} requests/s"
    line += f", burstiness {load.burstiness:g}" if load.burstiness is not None else ""
    return line + (f", ramp {load.ramp_s:g} s" if load.ramp_s else "")


def _lengths_table(drawn: Outline) -> Table:
    names = [f"p{round(quantile * 100)}" for quantile in QUANTILES]
    table = Table("tokens a request", "mean", "min", *names, "max")
    prompts = [size.prompt_tokens for size in drawn.sizes]
    outputs = [size.output_tokens for size in drawn.sizes]
    for name, tokens in (("prompt", prompts), ("output", outputs)):
        table.add_row(name, *(f"{figure:,.0f}" for figure in _figures(tokens)))
    return table


def _figures(tokens: Sequence[int]) -> list[float]:
    quantiles = np.quantile(tokens, QUANTILES).tolist()
    return [float(np.mean(tokens)), min(tokens), *quantiles, max(tokens)]
