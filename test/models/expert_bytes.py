"""Expert bytes of one prompt beside running requests: layered, whole and in mixed chunks, each counted twice.

The server's counters are compared with the sets of experts that every row of every call chose. Beside each
ratio stands the one to expect of rows that choose at random. Run by `scripts/bench-expert-bytes`.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import click

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS / "runner"), str(TESTS)]
os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count()))

from tiny_models import MODELS, use_the_cpu  # noqa: E402

use_the_cpu()

from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from family_checks import ExpertOracle  # noqa: E402
from harness import SteppedScheduler  # noqa: E402
from prompts import prompt  # noqa: E402
from sglang_layered_lab.models.catalogue import find_recipe  # noqa: E402
from sglang_layered_lab.models.make import make_from_recipe  # noqa: E402
from step_bench import RUNNING_CONTEXT, WARM_UP_STEPS, Way, set_up  # noqa: E402
from study_record import write_record  # noqa: E402

PROMPT_TOKENS, DECODE_ROWS = 2048, 4
LAYERED = Way("even", 5)
WAYS = (LAYERED, Way("whole"), Way("mixed", 1024), Way("mixed", 512), Way("mixed", 256))


@dataclass(frozen=True)
class Bytes:
    """From the arrival of a prompt to its first token."""

    way: str
    seed: int
    total_bytes: int
    oracle_bytes: int
    prompt_bytes: int
    expected_bytes: float


def measure(stepped: SteppedScheduler, way: Way, seed: int) -> Bytes:
    """One prompt beside DECODE_ROWS requests; its own part is what the server reports to it."""
    set_up(stepped, way, PROMPT_TOKENS)
    observer = stepped.scheduler.layered_observer
    for index in range(DECODE_ROWS):
        stepped.send(prompt(RUNNING_CONTEXT, 1000 * seed + index), 400)
    stepped.step(WARM_UP_STEPS)
    before = sum(observer.state()["expert_traffic"]["load_bytes"].values())
    oracle = ExpertOracle(stepped.scheduler.tp_worker.model_runner.model)
    ask = {"custom_params": {"layered_report": True}}
    rid = stepped.send(prompt(PROMPT_TOKENS, 1000 * seed + 99), 1, sampling=ask)
    while not stepped.reqs[rid].output_ids:
        stepped.step()
    total = sum(observer.state()["expert_traffic"]["load_bytes"].values()) - before
    counted = oracle.stop()
    [mine] = stepped.reqs[rid].customized_info["expert_bytes"]
    for other in list(stepped.reqs):
        stepped.abort(other)
    stepped.drain()
    return Bytes(way.name, seed, total, counted, mine, expected_bytes(stepped, way))


def expected_bytes(stepped: SteppedScheduler, way: Way) -> float:
    """What rows that choose top_k of E experts at random activate: E (1 - (1 - top_k/E)^rows) a layer."""
    state = stepped.scheduler.layered_observer.state()["expert_traffic"]
    num_layers, num_experts = len(state["experts"]), state["experts"][0]
    miss, size = 1 - state["experts_per_token"][0] / num_experts, state["expert_bytes"][0]

    def layer(num_rows: int) -> float:
        return num_experts * (1 - miss**num_rows) * size

    if way.kind == "whole":
        return num_layers * layer(PROMPT_TOKENS)
    if way.kind == "mixed":
        num_full, num_left = divmod(PROMPT_TOKENS, way.size - DECODE_ROWS)
        chunks = [way.size] * num_full + [num_left + DECODE_ROWS] * (num_left > 0)
        return num_layers * sum(map(layer, chunks))
    hybrid = num_layers * layer(PROMPT_TOKENS + DECODE_ROWS)
    return hybrid + (way.size - 1) * num_layers * layer(DECODE_ROWS)


def table(rows: list[Bytes]) -> Table:
    """Means over the seeds, and ratios to layered."""
    shown = Table(
        "way", "GB, all rows", "GB, prompt's part", "over layered", "to expect", "prompt's part over layered"
    )
    mean = {way: [row for row in rows if row.way == way] for way in dict.fromkeys(row.way for row in rows)}

    def of(way: str, field: str) -> float:
        return sum(getattr(row, field) for row in mean[way]) / len(mean[way])

    for way in mean:
        base = LAYERED.name
        shown.add_row(
            way,
            f"{of(way, 'total_bytes') / 1e9:.3f}",
            f"{of(way, 'prompt_bytes') / 1e9:.3f}",
            f"{of(way, 'total_bytes') / of(base, 'total_bytes'):.2f}",
            f"{of(way, 'expected_bytes') / of(base, 'expected_bytes'):.2f}",
            f"{of(way, 'prompt_bytes') / of(base, 'prompt_bytes'):.2f}",
        )
    return shown


@click.command()
@click.option("--seeds", default=3, show_default=True)
@click.option("--preset", default="demo", show_default=True, type=click.Choice(["demo", "tiny"]))
@click.option("--out", type=click.Path(path_type=Path), help="Where the record goes.")
def main(seeds: int, preset: str, out: Path | None) -> None:
    """Measure, compare the counters with the oracle, print the table; exit 1 when they differ."""
    recipe = find_recipe("qwen3_moe", preset)
    model = MODELS / f"expert-bytes-{preset}"
    make_from_recipe(recipe, model, force=True)
    stepped = SteppedScheduler(
        model,
        dtype=recipe.dtype,
        max_total_tokens=8000,
        chunked_prefill_size=8192,
        enable_expert_traffic_metrics=True,
        disable_overlap_schedule=True,
        disable_radix_cache=True,
        layered_check_invariants="basic",
    )
    rows = [measure(stepped, way, seed) for seed in range(seeds) for way in WAYS]
    Console(width=120).print(table(rows))
    if out is not None:
        spec = {"recipe": recipe.as_dict(), "prompt_tokens": PROMPT_TOKENS, "decode_rows": DECODE_ROWS}
        write_record(out, spec, rows)
    sys.exit(any(row.total_bytes != row.oracle_bytes for row in rows))


if __name__ == "__main__":
    main()
