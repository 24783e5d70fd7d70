"""Expert bytes of one prompt beside requests with drafts: fused and sequential steps, and without drafts.

The server's counters are compared with the sets of experts that every row of every call chose. Run by
`scripts/bench-drafted-bytes`.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ["TORCH_COMPILE_DISABLE"] = "1"  # SGLang compiles small functions of its drafts, for minutes

from families_on_cpu import use_references
from family_run import close

use_references()

import click  # noqa: E402
from drafts_on_cpu import stand_in  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402
from tiny_models import MODELS  # noqa: E402

from drafted_cases import CHAIN  # noqa: E402
from drafted_charges import counted  # noqa: E402
from family_checks import ExpertOracle  # noqa: E402
from harness import SteppedScheduler  # noqa: E402
from prompts import prompt  # noqa: E402
from sglang_layered.core.choice import StrategyChoice  # noqa: E402
from sglang_layered_lab.models.catalogue import find_recipe  # noqa: E402
from sglang_layered_lab.models.drafts import make_draft  # noqa: E402
from sglang_layered_lab.models.make import make_from_recipe  # noqa: E402
from sglang_layered_lab.models.recipe import ExpertShape, ModelRecipe  # noqa: E402
from study_record import write_record  # noqa: E402

PROMPT_TOKENS, NUM_GROUPS, DECODED = 512, 4, 300
RUNNING, CONTEXT_TOKENS, WARM_UP_STEPS = (1, 4, 16), 40, 6
EXPERTS = ExpertShape(128, 8, 64)
STRATEGIES = ("fused", "sequential")


@dataclass(frozen=True)
class Bytes:
    """From the arrival of a prompt to its first token."""

    drafts: bool
    strategy: str
    num_running: int
    seed: int
    total_bytes: int
    oracle_bytes: int


def measure(stepped: SteppedScheduler, strategy: str, num_running: int, seed: int) -> tuple[int, int]:
    """Bytes that the server counted and that rows chose, of one prompt beside so many requests."""
    stepped.drain()
    stepped.loop._execution.choice = StrategyChoice(strategy)
    for index in range(num_running):
        stepped.send(prompt(CONTEXT_TOKENS, 1000 * seed + index), DECODED)
    stepped.step(WARM_UP_STEPS)
    before, oracle = counted(stepped), ExpertOracle(stepped.scheduler.tp_worker.model_runner.model)
    rid = stepped.send(prompt(PROMPT_TOKENS, 1000 * seed + 99), 1)
    while not stepped.reqs[rid].output_ids:
        stepped.step()
    found = counted(stepped) - before, oracle.stop()
    running = [req.rid for req in stepped.scheduler.running_batch.reqs]
    assert len(running) == num_running, "one has ended meanwhile"
    for other in running:
        stepped.abort(other)
    return found


def rows_of(model: Path, draft: Path | None, seeds: int) -> list[Bytes]:
    """All that is measured with this draft, or without one."""
    speculates: dict[str, Any] = {}
    if draft is not None:
        speculates = {"speculative_algorithm": "EAGLE", "speculative_draft_model_path": str(draft), **CHAIN}
    stepped = SteppedScheduler(
        model,
        max_total_tokens=16_000,
        chunked_prefill_size=8192,
        layered_group_tokens=PROMPT_TOKENS // NUM_GROUPS,
        enable_expert_traffic_metrics=True,
        disable_overlap_schedule=True,
        disable_radix_cache=True,
        **speculates,
    )
    found = [
        Bytes(draft is not None, strategy, num, seed, *measure(stepped, strategy, num, seed))
        for seed in range(seeds)
        for num in RUNNING
        for strategy in STRATEGIES
    ]
    close()
    return found


def table(rows: list[Bytes]) -> Table:
    """Means over the seeds, in MB."""
    shown = Table("drafts", "running", *STRATEGIES, "fused over sequential")
    for drafts in (True, False):
        for num in RUNNING:
            mean = {
                strategy: sum(
                    row.total_bytes for row in rows if (row.drafts, row.num_running, row.strategy) == key
                )
                / sum((row.drafts, row.num_running, row.strategy) == key for row in rows)
                for strategy in STRATEGIES
                for key in [(drafts, num, strategy)]
            }
            fused, apart = mean.values()
            shown.add_row(
                str(drafts), str(num), f"{fused / 1e6:.1f}", f"{apart / 1e6:.1f}", f"{fused / apart:.3f}"
            )
    return shown


@click.command()
@click.option("--seeds", default=3, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Where the record goes.")
def main(seeds: int, out: Path | None) -> None:
    """Measure, compare the counters with the oracle, print the table; exit 1 when they differ."""
    stand_in()
    made = find_recipe("qwen3_moe", "tiny", draftable=True)
    assert isinstance(made, ModelRecipe)
    recipe = replace(made, experts=EXPERTS)
    model = MODELS / "drafted-bytes"
    make_from_recipe(recipe, model, force=True)
    draft = MODELS / "drafted-bytes-eagle"
    make_draft("eagle", model, draft, force=True)
    rows = [*rows_of(model, draft, seeds), *rows_of(model, None, seeds)]
    Console(width=120).print(table(rows))
    if out is not None:
        spec = {"recipe": recipe.as_dict(), "prompt_tokens": PROMPT_TOKENS, "num_groups": NUM_GROUPS}
        write_record(out, spec | {"speculates": CHAIN, "running_context_tokens": CONTEXT_TOKENS}, rows)
    sys.exit(any(row.total_bytes != row.oracle_bytes for row in rows))


if __name__ == "__main__":
    main()
