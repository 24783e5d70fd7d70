"""`sglang-layered explain` and `replay`: what a recorded run decided, and what another policy would have."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table

from sglang_layered.config import LayeredConfig
from sglang_layered.core.policy import DEFAULT_POLICY
from sglang_layered.errors import BenchError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sglang_layered.core.policy import GroupPolicy
    from sglang_layered_lab.traces.replay import Served
    from sglang_layered_lab.traces.run_model import RunModel
    from sglang_layered_lab.traces.trace import Trace

QUANTILES = (("TTFT mean", "ttft", None), ("TTFT p50", "ttft", 0.5), ("TTFT p99", "ttft", 0.99))
GAP_QUANTILES = (("TBT mean", "tbt", None), ("TBT p50", "tbt", 0.5), ("TBT p99", "tbt", 0.99))
DEFAULT_COHORT = 8192


@click.command()
@click.argument("trace", type=click.Path(path_type=Path))
def explain(trace: Path) -> None:
    """Print what policy auto decided in each step, from a trace of --layered-listeners jsonl=TRACE."""
    from sglang_layered_lab.traces.explain import explain_table, summary
    from sglang_layered_lab.traces.trace import read_trace

    console, read = _console(), read_trace(trace)
    table = explain_table(read.steps)
    if table.row_count:
        console.print(table)
    console.print(summary(read.steps))


@click.command()
@click.argument("trace", type=click.Path(path_type=Path))
@click.option("--policy", default=DEFAULT_POLICY, show_default=True, help="As --layered-policy.")
@click.option("--num-groups", type=click.IntRange(min=1), help="As --layered-num-groups.")
@click.option("--group-tokens", type=click.IntRange(min=1), default=512, show_default=True)
@click.option(
    "--slo-tbt-ms", type=click.FloatRange(min=0, min_open=True), help="For policies that keep it, as auto."
)
@click.option(
    "--cohort-tokens", type=click.IntRange(min=1), help="As --chunked-prefill-size.  [default: the trace's]"
)
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    help="A trace of that policy, to compare the prediction with.",
)
def replay(
    trace: Path,
    policy: str,
    num_groups: int | None,
    group_tokens: int,
    slo_tbt_ms: float | None,
    cohort_tokens: int | None,
    against: Path | None,
) -> None:
    """Predict TTFT and TBT of another policy for the requests of TRACE; step times are TRACE's own.

    TRACE is a file of --layered-listeners jsonl=TRACE of a server in layered mode.
    """
    from sglang_layered_lab.traces.replay import Replay, requests_of, served_of
    from sglang_layered_lab.traces.run_model import RunModel
    from sglang_layered_lab.traces.trace import read_trace

    config = LayeredConfig(
        prefill_mode="layered",
        layered_policy=policy,
        layered_num_groups=num_groups,
        layered_group_tokens=group_tokens,
        slo_tbt_ms=slo_tbt_ms,
    )
    read = read_trace(trace)
    config.check_depth(read.sizes.num_layers)
    model = RunModel.of(read.steps, read.sizes)
    limit_s = None if slo_tbt_ms is None else slo_tbt_ms / 1e3
    most = cohort_tokens or read.cohort_tokens or DEFAULT_COHORT
    made = _policy(config, model, read)
    predicted = Replay(model, made, most, limit_s).run(requests_of(read.steps))
    columns = {
        f"recorded: {read.policy}": served_of(read.steps),
        f"predicted: {config.text_of(made)}": predicted,
    }
    if against is None:
        _console().print(_table(columns))
        return
    other = read_trace(against)
    model, factor = model.at_speed_of(other.steps)
    at_speed = Replay(model, _policy(config, model, read), most, limit_s).run(requests_of(read.steps))
    columns["predicted, at the other run's speed"] = at_speed
    columns[f"measured: {other.policy}"] = served_of(other.steps)
    _console().print(_table(columns))
    _console().print(f"The other run's steps took {factor:.2f} times what was predicted of them.")


@click.command("paper-duel")
@click.argument("trace", type=click.Path(path_type=Path))
@click.option(
    "--limit-ms", "limits_ms", type=click.FloatRange(min=0, min_open=True), multiple=True, required=True
)
@click.option(
    "--prompt-tokens", type=click.IntRange(min=1), multiple=True, default=(512, 2048), show_default=True
)
@click.option("--streams", type=click.IntRange(min=1), multiple=True, default=(2, 8), show_default=True)
@click.option(
    "--chunk", "chunks", type=click.IntRange(min=1), multiple=True, default=(128, 256, 512), show_default=True
)
@click.option("--rounds", type=click.IntRange(min=1), default=4, show_default=True)
@click.option("--seeds", type=click.IntRange(min=1), default=8, show_default=True, help="So many duels.")
def paper_duel(
    trace: Path,
    limits_ms: tuple[float, ...],
    prompt_tokens: tuple[int, ...],
    streams: tuple[int, ...],
    chunks: tuple[int, ...],
    rounds: int,
    seeds: int,
) -> None:
    """Policy auto against fixed settings on paper: step times and surprises are TRACE's.

    Tells within seconds what a change of the policy would do to a duel of an hour. Limits are the same for
    all prompts; name those that suit the trace's machine.
    """
    from sglang_layered_lab.traces.paper_duel import Point, tallies
    from sglang_layered_lab.traces.trace import read_trace

    points = [Point(tokens, count) for tokens in prompt_tokens for count in streams]
    found = tallies(read_trace(trace), points, [each / 1e3 for each in limits_ms], chunks, rounds, seeds)
    table = Table(
        "tokens", "streams", "limit ms", "auto holds", "fixed holds", "late", "TTFT over best fixed"
    )
    for (point, limit_s), tally in found.items():
        ratio = f"{sum(tally.ratios) / len(tally.ratios):.3f}" if tally.ratios else "-"
        late = f"{tally.num_late / tally.num_gaps:.2%}"
        held = (f"{tally.num_held} of {seeds}", f"{tally.num_fixed} of {seeds}")
        table.add_row(str(point.tokens), str(point.streams), f"{1e3 * limit_s:g}", *held, late, ratio)
    _console().print(table)
    both, fixed = (sum(getattr(each, name) for each in found.values()) for name in ("num_both", "num_fixed"))
    _console().print(f"Where a fixed setting holds 99 % of the gaps, auto does in {both} of {fixed} duels.")


def _policy(config: LayeredConfig, model: RunModel, trace: Trace) -> GroupPolicy:
    from sglang_layered_lab.traces.run_model import ready_policy

    return ready_policy(config.make_policy(), model, trace)


def _table(columns: Mapping[str, Mapping[str, Served]]) -> Table:
    table = Table("ms", *columns)
    found = [_times(each) for each in columns.values()]
    for name, of, quantile in (*QUANTILES, *GAP_QUANTILES):
        table.add_row(name, *(_cell(times[of], quantile) for times in found))
    table.add_row("requests", *(str(len(each)) for each in columns.values()))
    return table


def _times(served: Mapping[str, Served]) -> dict[str, list[float]]:
    if not served:
        raise BenchError("no request of the trace got a token")
    return {
        "ttft": [each.ttft_s for each in served.values()],
        "tbt": [gap for each in served.values() for gap in each.gaps_s],
    }


def _cell(values_s: list[float], quantile: float | None) -> str:
    import numpy as np

    if not values_s:
        return "-"
    value = np.mean(values_s) if quantile is None else np.quantile(values_s, quantile)
    return f"{1e3 * float(value):.1f}"


def _console() -> Console:
    return Console(width=None if Console().is_terminal else 160)
