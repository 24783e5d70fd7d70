"""What a cut costs and gives on this machine: one prompt beside running requests, every way to schedule it.

Ways take turns in one process, repetition by repetition, so that drift hits all of them. Times are those of
whole scheduler steps. Run by `scripts/bench-models`.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS / "runner"), str(TESTS)]
os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count()))  # the models are large enough for threads

from tiny_models import MODELS, use_the_cpu  # noqa: E402

use_the_cpu()

from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from harness import SteppedScheduler  # noqa: E402
from prompts import prompt  # noqa: E402
from sglang_layered.core.policy import BalancedPolicy, TokenTargetPolicy  # noqa: E402
from sglang_layered_lab.models.catalogue import FAMILIES, Recipe, find_recipe  # noqa: E402
from sglang_layered_lab.models.make import make_from_recipe  # noqa: E402
from sglang_layered_lab.models.recipe import FamilyRecipe  # noqa: E402
from study_record import write_record  # noqa: E402

RUNNING_CONTEXT = 64
WARM_UP_STEPS = 3


@dataclass(frozen=True)
class Way:
    """How a prompt is scheduled: `whole`, `mixed` chunks of `size` tokens, or `size` layer groups."""

    kind: str
    size: int = 0

    @property
    def name(self) -> str:
        return f"{self.kind} {self.size}" if self.size else self.kind


@dataclass(frozen=True)
class Measured:
    """One prompt's way: time to its first token, and each step until then."""

    way: str
    prompt_tokens: int
    decode_rows: int
    ttft_s: float
    steps_s: list[float]


def measure(stepped: SteppedScheduler, way: Way, prompt_tokens: int, decode_rows: int) -> Measured:
    """Requests decode; a prompt comes; every step until its first token is timed."""
    set_up(stepped, way, prompt_tokens)
    for index in range(decode_rows):
        stepped.send(prompt(RUNNING_CONTEXT, 100 + index), 400)
    stepped.step(WARM_UP_STEPS)
    rid = stepped.send(prompt(prompt_tokens, 7), 1)
    steps_s = []
    while not stepped.reqs[rid].output_ids:
        started_s = time.perf_counter()
        stepped.step()
        steps_s.append(time.perf_counter() - started_s)
    for other in list(stepped.reqs):
        stepped.abort(other)
    stepped.drain()
    return Measured(way.name, prompt_tokens, decode_rows, sum(steps_s), steps_s)


def set_up(stepped: SteppedScheduler, way: Way, prompt_tokens: int) -> None:
    scheduler = stepped.scheduler
    scheduler.is_mixed_chunk = way.kind == "mixed"
    layered = way.kind in ("even", "balanced")
    settings: dict[str, float] = {"layered_prefill": int(layered)}
    settings["layered_cohort_tokens"] = way.size if way.kind == "mixed" else 8192
    if layered:
        settings["layered_group_tokens"] = -(-prompt_tokens // way.size)
    assert stepped.change(settings)
    if layered:
        policy = BalancedPolicy if way.kind == "balanced" else TokenTargetPolicy
        controls = stepped.loop.controls
        controls.put_in_force(controls.config, policy(-(-prompt_tokens // way.size)), "bench")


@dataclass(frozen=True)
class Study:
    """A model, the ways to compare on it, and the loads."""

    recipe: Recipe
    ways: tuple[Way, ...]
    prompt_tokens: tuple[int, ...]
    decode_rows: tuple[int, ...]


def heavy_first() -> FamilyRecipe:
    """Twelve layers: four with a wide dense MLP, then eight with small experts."""
    fields = FAMILIES["glm4_moe"].fields | {
        "hidden_size": 512,
        "intermediate_size": 8192,
        "moe_intermediate_size": 256,
        "first_k_dense_replace": 4,
    }
    return FamilyRecipe(arch="glm4_moe", fields=fields, preset="heavy-first", dtype="bfloat16", num_layers=12)


GROUPS = (Way("whole"), Way("mixed", 512), Way("mixed", 256), Way("even", 2), Way("even", 4))
STUDIES = {
    "dense": Study(find_recipe("llama", "demo", num_layers=8), GROUPS, (512, 2048), (1, 8)),
    "experts": Study(find_recipe("qwen3_moe", "demo", num_layers=4), GROUPS, (512, 2048), (1, 8)),
    "balanced": Study(
        heavy_first(),
        tuple(Way(kind, size) for size in (2, 3, 4, 6) for kind in ("even", "balanced")),
        (1024,),
        (4,),
    ),
}


def cells(study: Study, repetitions: int) -> Iterator[tuple[Way, int, int]]:
    for prompt_tokens in study.prompt_tokens:
        for decode_rows in study.decode_rows:
            for _ in range(repetitions):
                for way in study.ways:
                    yield way, prompt_tokens, decode_rows


def table(rows: list[Measured]) -> Table:
    """Medians over the repetitions, and the spread of the time to the first token."""
    shown = Table("prompt", "decode rows", "way", "TTFT s", "least to most", "worst step s")
    for key in dict.fromkeys((row.prompt_tokens, row.decode_rows, row.way) for row in rows):
        same = [row for row in rows if (row.prompt_tokens, row.decode_rows, row.way) == key]
        ttfts = [row.ttft_s for row in same]
        worst = statistics.median(max(row.steps_s) for row in same)
        spread = f"{min(ttfts):.3f} to {max(ttfts):.3f}"
        shown.add_row(*map(str, key), f"{statistics.median(ttfts):.3f}", spread, f"{worst:.3f}")
    return shown


@click.command()
@click.argument("name", type=click.Choice(list(STUDIES)))
@click.option("--repetitions", default=3, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Where the record goes.")
def main(name: str, repetitions: int, out: Path | None) -> None:
    """Measure one study and print its table."""
    study = STUDIES[name]
    model = MODELS / f"study-{name}"
    make_from_recipe(study.recipe, model, force=True)
    stepped = SteppedScheduler(
        model,
        dtype="bfloat16",
        max_total_tokens=20000,
        max_running_requests=64,
        chunked_prefill_size=8192,
        disable_overlap_schedule=True,
        disable_radix_cache=True,
        layered_check_invariants="basic",
    )
    plan = list(cells(study, repetitions))
    measure(stepped, *plan[0])
    rows = [measure(stepped, *cell) for cell in plan]
    Console(width=110).print(table(rows))
    if out is not None:
        write_record(out, {"recipe": study.recipe.as_dict(), "running_context": RUNNING_CONTEXT}, rows)


if __name__ == "__main__":
    main()
