"""What policy `auto` decided in each step of a trace, as a table."""

import statistics
from collections.abc import Sequence

from rich.table import Table

from sglang_layered.core.pacing import Option
from sglang_layered_lab.traces.trace import TracedStep

COLUMNS = ("step", "decodes", "prompt rows", "layers", "budget", "predicted", "took", "why", "second best")


def explain_table(steps: Sequence[TracedStep]) -> Table:
    """A row a decided step; times in ms."""
    table = Table(*COLUMNS, title="Decisions of the step policy, times in ms")
    for each in steps:
        decision = each.decision
        if decision is None or each.group is None:
            continue
        start, end = each.group
        table.add_row(
            str(each.step),
            str(each.load.decode_rows),
            str(each.load.prompt_rows),
            f"{start}-{end - 1}",
            _ms(decision.budget_s),
            _ms(decision.predicted_s),
            _ms(each.duration_s),
            "fits" if decision.fits else "not even one layer fits",
            _option(decision.runner_up),
        )
    return table


def summary(steps: Sequence[TracedStep]) -> str:
    """One line: how many decisions, how many did not fit, how wrong the predictions were."""
    decided = [(each, each.decision) for each in steps if each.decision is not None]
    if not decided:
        return "No step of this trace was decided by a step policy: serve with --layered-policy auto."
    errors = sorted(abs(decision.predicted_s / each.duration_s - 1) for each, decision in decided)
    over = sum(each.duration_s > max(decision.budget_s, 0) for each, decision in decided if decision.fits)
    tight = sum(not decision.fits for _, decision in decided)
    return (
        f"{len(decided)} decisions: {tight} without room for one layer, {over} of the others took longer than"
        f" their budget; predictions were {statistics.median(errors):.1%} off in the median,"
        f" {errors[int(0.9 * (len(errors) - 1))]:.1%} at p90."
    )


def _option(option: Option | None) -> str:
    if option is None:
        return "-"
    late = "" if option.fits else ", too long a step"
    return f"{option.layers} layers of {option.cohort_tokens} tokens: {_ms(option.ttft_s)} to the end{late}"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.1f}"
