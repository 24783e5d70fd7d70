"""`sglang-layered explain` and `replay`: what a recorded run decided, and what another policy would have."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from sglang_layered.config import LayeredConfig
from sglang_layered.core.capability import Capability
from sglang_layered.core.policy import DEFAULT_POLICY
from sglang_layered.errors import BenchError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sglang_layered_lab.traces.replay import Request
    from sglang_layered_lab.traces.run_model import RunModel
    from sglang_layered_lab.traces.trace import Trace

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
@click.option(
    "--policy", "layered_policy", default=DEFAULT_POLICY, show_default=True, help="As --layered-policy."
)
@click.option(
    "--num-groups", "layered_num_groups", type=click.IntRange(min=1), help="As --layered-num-groups."
)
@click.option(
    "--group-tokens", "layered_group_tokens", type=click.IntRange(min=1), default=512, show_default=True
)
@click.option(
    "--slo-tbt-ms", type=click.FloatRange(min=0, min_open=True), help="For policies that keep it, as auto."
)
@click.option(
    "--slo-ttft-ms", type=click.FloatRange(min=0, min_open=True), help="For policies that answer questions."
)
@click.option(
    "--cohort-tokens", type=click.IntRange(min=1), help="As --chunked-prefill-size.  [default: the trace's]"
)
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    help="A trace of that policy, to compare the prediction with.",
)
def replay(trace: Path, cohort_tokens: int | None, against: Path | None, **settings: Any) -> None:
    """Predict TTFT and TBT of another policy for the requests of TRACE; step times are TRACE's own.

    TRACE is a file of --layered-listeners jsonl=TRACE of a server in layered mode.
    """
    from sglang_layered_lab.traces.replay import served_of
    from sglang_layered_lab.traces.run_model import RunModel
    from sglang_layered_lab.traces.trace import read_trace

    config = LayeredConfig(prefill_mode="layered", **settings)
    read = read_trace(trace)
    config.check_depth(read.sizes.num_layers)
    model = RunModel.of(read.steps, read.sizes)
    made = config.text_of(config.make_policy())
    columns = {
        f"recorded: {read.policy}": served_of(read.steps),
        f"predicted: {made}": _predicted(config, model, read, cohort_tokens),
    }
    lines: list[str] = []
    if config.policy_can(Capability.PREEMPTS_COHORTS):
        lines.append("A replay has one cohort in flight: the policy is not asked who goes before it.")
    if against is not None:
        other = read_trace(against)
        model, factor = model.at_speed_of(other.steps)
        columns["predicted, at the other run's speed"] = _predicted(config, model, read, cohort_tokens)
        columns[f"measured: {other.policy}"] = served_of(other.steps)
        lines += [f"The other run's steps took {factor:.2f} times what was predicted of them."]
    _console().print(_table(columns), *lines, sep="\n")


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
    from sglang_layered_lab.traces.paper_duel import Point, duels
    from sglang_layered_lab.traces.trace import read_trace

    points = [Point(tokens, count) for tokens in prompt_tokens for count in streams]
    limits_s = [each / 1e3 for each in limits_ms]
    found = duels(read_trace(trace), points, limits_s, chunks, rounds, seeds)
    table = Table(
        "tokens", "streams", "limit ms", "auto holds", "fixed holds", "late", "TTFT over best fixed"
    )
    for (tokens, count, limit_s), each in found.groupby(["tokens", "streams", "limit_s"], sort=False):
        held = (f"{each.holds.sum()} of {seeds}", f"{each.fixed.sum()} of {seeds}")
        ratio = "-" if each.ratio.isna().all() else f"{each.ratio.mean():.3f}"
        late = f"{each.late.sum() / each.gaps.sum():.2%}"
        table.add_row(str(tokens), str(count), f"{1e3 * limit_s:g}", *held, late, ratio)
    _console().print(table)
    both = (found.holds & found.fixed).sum()
    _console().print(
        f"Where a fixed setting holds 99 % of the gaps, auto does in {both} of {found.fixed.sum()} duels."
    )


def _predicted(
    config: LayeredConfig, model: "RunModel", read: "Trace", cohort_tokens: int | None
) -> "Mapping[str, Request]":
    from sglang_layered_lab.traces.replay import Replay, requests_of
    from sglang_layered_lab.traces.run_model import ready_policy

    limits_ms = (config.slo_ttft_ms, config.slo_tbt_ms)
    ttft_s, tbt_s = (None if limit_ms is None else limit_ms / 1e3 for limit_ms in limits_ms)
    policy = ready_policy(config.make_policy(), model, read)
    most = cohort_tokens or read.cohort_tokens or DEFAULT_COHORT
    served = Replay(model, policy, most, tbt_s, ttft_limit_s=ttft_s)
    return served.run(requests_of(read.steps))


def _table(columns: "Mapping[str, Mapping[str, Request]]") -> Table:
    table = Table("ms", *columns)
    found = [_times(each) for each in columns.values()]
    for name in ("TTFT", "TBT"):
        for statistic, quantile in (("mean", None), ("p50", 0.5), ("p99", 0.99)):
            table.add_row(f"{name} {statistic}", *(_cell(times[name], quantile) for times in found))
    table.add_row("requests", *(str(len(each)) for each in columns.values()))
    return table


def _times(served: "Mapping[str, Request]") -> dict[str, list[float]]:
    if not served:
        raise BenchError("no request of the trace got a token")
    return {
        "TTFT": [each.ttft_s for each in served.values()],
        "TBT": [gap for each in served.values() for gap in each.gaps_s],
    }


def _cell(values_s: list[float], quantile: float | None) -> str:
    import numpy as np

    if not values_s:
        return "-"
    value = np.mean(values_s) if quantile is None else np.quantile(values_s, quantile)
    return f"{1e3 * float(value):.1f}"


def _console() -> Console:
    return Console(width=None if Console().is_terminal else 160)
