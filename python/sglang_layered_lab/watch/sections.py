"""The parts of a page as rich tables, each with its name as the first column's head."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table

from sglang_layered_lab.watch import text
from sglang_layered_lab.watch.view import Off, Progress, View

BAR_WIDTH = 30
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
QUANTILE_WIDTH = 15  # as wide as they get, so that columns stay where they are


def sections(view: View) -> list[Table]:
    """All parts, the most looked at first; that on ranks only where there are several."""
    parts = [
        _requests(view),
        _latency(view),
        _steps(view),
        _cohorts(view),
        _experts(view),
        _power(view),
        _slo(view),
    ]
    return [*parts, _ranks(view)] if view.ranks else parts


def _table(name: str, heads: Sequence[str], rows: Iterable[Sequence[RenderableType]]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column(name, header_style="bold cyan", no_wrap=True, min_width=9)
    for head in heads:
        table.add_column(head, min_width=QUANTILE_WIDTH if head in QUANTILES else None)
    for row in rows:
        table.add_row(*row)
    return table


def _off(name: str, part: Off) -> Table:
    return _table(name, [part.reason], [])


def _requests(view: View) -> Table:
    load = view.load
    when = " (counted at the end of a request)" if load.tokens.at_end else ""
    heads = ["running", "waiting", f"prompt tokens/s{when}", f"output tokens/s{when}"]
    numbers = (load.running, load.waiting, load.tokens.prompt_per_s, load.tokens.output_per_s)
    return _table("requests", heads, [["", *map(text.plain, numbers)]])


def _latency(view: View) -> Table:
    rows = [
        [
            name,
            text.plain(times.num_observations),
            *(text.quantile_s(times, part) for part in QUANTILES.values()),
        ]
        for name, times in (("TTFT", view.ttft_s), ("TBT", view.tbt_s))
    ]
    return _table("latency", ["seen", *QUANTILES], rows)


def _steps(view: View) -> Table:
    if isinstance(view.steps, Off):
        return _off("steps", view.steps)
    rows = [
        [
            line.kind,
            text.plain(line.per_s, "/s"),
            text.seconds(line.seconds.mean),
            text.quantile_s(line.seconds, 0.5),
            text.quantile_s(line.seconds, 0.99),
        ]
        for line in view.steps
    ]
    return _table("steps", ["rate", "mean", "p50", "p99"], rows)


def _cohorts(view: View) -> Table:
    cohorts = view.cohorts
    if isinstance(cohorts, Off):
        return _off("cohorts", cohorts)
    dropped = ", ".join(f"{count:,.0f} {reason}" for reason, count in cohorts.dropped.items()) or "0"
    numbers = [
        text.plain(cohorts.in_flight),
        text.size(cohorts.parked_bytes),
        text.plain(cohorts.slots_filled),
        text.plain(cohorts.slots_partial),
        dropped,
    ]
    heads = ["in flight", "parked", "slots filled", "partial", "dropped ever"]
    table = Table.grid()
    table.add_row(_table("cohorts", heads, [["", *numbers]]))
    for progress in cohorts.progress:
        table.add_row(_progress(progress))
    return table


def _progress(progress: Progress) -> Table:
    groups = progress.done + progress.left
    row = Table.grid(padding=(0, 2, 0, 0))
    row.add_column(min_width=9)
    name = text.source_name(progress.source)
    if groups:
        bar = ProgressBar(total=groups, completed=progress.done, width=BAR_WIDTH)
        row.add_row(name, bar, f"{progress.done} of {groups} layer groups")
    else:
        row.add_row(name, "no cohort in flight")
    return row


def _experts(view: View) -> Table:
    if isinstance(view.experts, Off):
        return _off("experts", view.experts)
    rows = [
        [
            line.phase,
            text.size(line.bytes_per_s, "/s"),
            text.percent(line.coverage.mean),
            text.plain(line.tokens_per_expert.mean),
        ]
        for line in view.experts
    ]
    return _table("experts", ["read", "mean coverage", "mean tokens/active expert"], rows)


def _power(view: View) -> Table:
    if isinstance(view.power, Off):
        return _off("energy", view.power)
    rows = [
        [
            f"{line.device.server} {line.device.name}".strip() if line.device else "all",
            text.plain(line.watts, "W"),
            text.plain(line.idle_watts, "W"),
            text.plain(line.j_per_prompt_token),
            text.plain(line.j_per_output_token),
            text.plain(line.j_per_token),
            line.device.source if line.device else "",
        ]
        for line in view.power
    ]
    return _table("energy", ["now", "idle", "J/prompt", "J/output", "J/token", "source"], rows)


def _slo(view: View) -> Table:
    if isinstance(view.slo, Off):
        return _off("SLO met", view.slo)
    rows = [
        [
            {"ttft": "TTFT", "tbt": "TBT"}.get(line.slo, line.slo),
            " or ".join(map(text.seconds, line.limits_s)),
            text.share(line.met, line.finished),
            text.share(line.met_ever, line.finished_ever),
        ]
        for line in view.slo
    ]
    return _table("SLO met", ["limit", "in the window", "since its start"], rows)


def _ranks(view: View) -> Table:
    rows = [
        [
            text.rank_name(line.rank),
            text.plain(line.running),
            text.plain(line.waiting),
            text.plain(line.steps_per_s, "/s"),
            text.seconds(line.seconds.mean),
            text.quantile_s(line.seconds, 0.99),
            text.size(line.parked_bytes),
        ]
        for line in view.ranks
    ]
    return _table("ranks", ["running", "waiting", "steps", "mean", "p99", "parked"], rows)
