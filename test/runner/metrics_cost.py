"""What observing costs: the time spent in our own code in every step, against the step itself.

A demo MoE model decodes, with a prompt in layer groups between; every entry into the observing code is
timed. Steps with and without it take turns in one process, so that their ratio can be given as well. Run by
`scripts/bench-metrics`.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS / "models"), str(TESTS)]
os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count()))

from tiny_models import MODELS, use_the_cpu  # noqa: E402

use_the_cpu()

from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from harness import SteppedScheduler  # noqa: E402
from prompts import prompt  # noqa: E402
from sglang_layered.runner.expert_watch import ExpertWatch  # noqa: E402
from sglang_layered.scheduler.metrics import LoopMetrics  # noqa: E402
from sglang_layered.scheduler.observer import Observer  # noqa: E402
from sglang_layered_lab.models.catalogue import find_recipe  # noqa: E402
from sglang_layered_lab.models.make import make_from_recipe  # noqa: E402
from study_record import write_record  # noqa: E402

OBSERVING = (
    (Observer, ("step", "before_results", "after_results")),
    (ExpertWatch, ("begin", "end", "_hear")),
    (LoopMetrics, ("admitted", "stepped", "in_flight")),
)
PROMPT_TOKENS, NUM_GROUPS = 512, 5


class Meter:
    """Adds up the time inside the observing code; while `is_on` is false that code does nothing."""

    def __init__(self) -> None:
        self.is_on = True
        self.spent_s = 0.0
        self._depth = 0
        for owner, names in OBSERVING:
            for name in names:
                setattr(owner, name, self._metered(getattr(owner, name)))

    def _metered(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def metered(*args: Any, **kwargs: Any) -> Any:
            if not self.is_on:
                return None
            self._depth += 1
            started_s = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                self._depth -= 1
                if self._depth == 0:
                    self.spent_s += time.perf_counter() - started_s

        return metered


@dataclass(frozen=True)
class Step:
    """One step; `spent_s` is the part of `duration_s` that was ours."""

    kind: str
    num_running: int
    observed: bool
    duration_s: float
    spent_s: float


def timed(stepped: SteppedScheduler, meter: Meter, num_running: int) -> Step:
    kind = "layered" if stepped.loop.inflight is not None else "decode"
    meter.spent_s, started_s = 0.0, time.perf_counter()
    stepped.step()
    return Step(kind, num_running, meter.is_on, time.perf_counter() - started_s, meter.spent_s)


def measure(stepped: SteppedScheduler, meter: Meter, num_running: int, rounds: int) -> list[Step]:
    """Each round: decode steps and a cohort's, once observed and once not."""
    for index in range(num_running):
        stepped.send(prompt(32, index), 40 * rounds)
    stepped.step(4)
    steps = []
    for turn in range(rounds):
        for observed in (True, False) if turn % 2 else (False, True):
            meter.is_on = observed
            steps += [timed(stepped, meter, num_running) for _ in range(4)]
            stepped.send(prompt(PROMPT_TOKENS, 1000 + 2 * turn + observed), 1)
            stepped.step()  # the admission and the first group
            while stepped.loop.inflight is not None:
                steps.append(timed(stepped, meter, num_running))
    meter.is_on = True
    for rid in list(stepped.reqs):
        stepped.abort(rid)
    stepped.drain()
    return steps


def table(steps: list[Step]) -> Table:
    """Medians by kind of step and number of running requests."""
    shown = Table("step", "running", "median ms", "ours ms", "ours %", "observed / not")
    for num_running, kind in dict.fromkeys((step.num_running, step.kind) for step in steps):
        same = [step for step in steps if (step.num_running, step.kind) == (num_running, kind)]
        on = [step for step in same if step.observed]
        off_s = statistics.median(step.duration_s for step in same if not step.observed)
        on_s = statistics.median(step.duration_s for step in on)
        ours_s = statistics.median(step.spent_s for step in on)
        part = 100 * statistics.median(step.spent_s / step.duration_s for step in on)
        cells = [f"{1e3 * on_s:.1f}", f"{1e3 * ours_s:.3f}", f"{part:.2f}", f"{on_s / off_s:.3f}"]
        shown.add_row(kind, str(num_running), *cells)
    return shown


@click.command()
@click.option("--rounds", default=12, show_default=True)
@click.option("--running", "loads", multiple=True, type=int, default=(4, 32), show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Where the record goes.")
def main(rounds: int, loads: tuple[int, ...], out: Path | None) -> None:
    """Print what observing costs a step."""
    meter = Meter()
    recipe = find_recipe("qwen3_moe", "demo")
    model = MODELS / "expert-bytes-demo"
    make_from_recipe(recipe, model, force=True)
    stepped = SteppedScheduler(
        model,
        dtype=recipe.dtype,
        max_total_tokens=60_000,
        max_running_requests=max(loads) + 4,
        chunked_prefill_size=8192,
        layered_num_groups=NUM_GROUPS,
        layered_check_invariants="basic",
        disable_overlap_schedule=True,
        disable_radix_cache=True,
        enable_metrics=True,
        enable_expert_traffic_metrics=True,
        enable_energy_metrics=True,
        slo_ttft_ms=1000.0,
        slo_tbt_ms=100.0,
    )
    steps = [step for load in loads for step in measure(stepped, meter, load, rounds)]
    Console(width=100).print(table(steps))
    if out is not None:
        spec = {"recipe": recipe.as_dict(), "rounds": rounds, "prompt_tokens": PROMPT_TOKENS}
        write_record(out, spec, steps)


if __name__ == "__main__":
    main()
