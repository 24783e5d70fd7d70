"""Two pipeline stages under prompts and running requests: layered against SGLang's own schedule.

The modes take turns on one server, by `/set_internal_state`. What the stages did comes from their step
traces, gaps between tokens from the clients. Four stages are laid out from the measured costs
(pipeline_model). Run by `scripts/bench-pipeline`.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS / "e2e"), str(TESTS)]

import click  # noqa: E402
import httpx  # noqa: E402
from event_lines import events  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402
from tiny_models import MODELS  # noqa: E402

from pipeline_model import Costs, Timeline, chunked, layered  # noqa: E402
from sglang_layered_lab.models.catalogue import find_recipe  # noqa: E402
from sglang_layered_lab.models.make import make_from_recipe  # noqa: E402
from sglang_layered_lab.models.recipe import ExpertShape  # noqa: E402
from sglang_layered_lab.serving import ServerProcess  # noqa: E402
from study_record import write_record  # noqa: E402
from workload import prompt, read_steps  # noqa: E402

NUM_STAGES, NUM_LAYERS = 2, 8
NUM_PROMPTS, PROMPT_TOKENS, GROUP_TOKENS = 8, 1024, 256
NUM_RUNNING, RUNNING_TOKENS = 4, 64
MODES = {
    "layered": {
        "layered_prefill": 1,
        "layered_cohort_tokens": PROMPT_TOKENS,
        "layered_group_tokens": GROUP_TOKENS,
    },
    "chunks of 512": {"layered_prefill": 0, "layered_cohort_tokens": 512},
    "whole": {"layered_prefill": 0, "layered_cohort_tokens": PROMPT_TOKENS},
}


@dataclass
class Seen:
    """One burst of prompts in one mode."""

    mode: str
    burst_s: float
    worst_gap_s: float
    bubble: float
    decode_s: float
    prompt_s: float  # of one prompt on one stage
    ttfts_s: list[float]


async def decode(client: httpx.AsyncClient, seed: int, arrivals: list[float]) -> None:
    """A running request; the time of each token."""
    body = {
        "input_ids": list(prompt(RUNNING_TOKENS, seed)),
        "sampling_params": {"temperature": 0, "max_new_tokens": 4000, "ignore_eos": True},
        "stream": True,
    }
    async with client.stream("POST", "/generate", json=body) as reply:
        async for _ in events(reply):
            arrivals.append(time.monotonic())


async def first_token(client: httpx.AsyncClient, seed: int) -> float:
    """Seconds to a prompt's only token."""
    started = time.monotonic()
    body = {
        "input_ids": list(prompt(PROMPT_TOKENS, seed)),
        "sampling_params": {"temperature": 0, "max_new_tokens": 1, "ignore_eos": True},
    }
    reply = await client.post("/generate", json=body)
    reply.raise_for_status()
    return time.monotonic() - started


async def burst(url: str, mode: str, seed: int, traces: list[Path]) -> Seen:
    """Running requests, then all prompts at once."""
    async with httpx.AsyncClient(base_url=url, timeout=600, trust_env=False) as client:
        (await client.post("/set_internal_state", json={"server_args": MODES[mode]})).raise_for_status()
        streams: list[list[float]] = [[] for _ in range(NUM_RUNNING)]
        tasks = [asyncio.create_task(decode(client, 10 + index, seen)) for index, seen in enumerate(streams)]
        while min(map(len, streams)) < 5:
            await asyncio.sleep(0.05)
        start = time.monotonic()
        ttfts = await asyncio.gather(*(first_token(client, seed + index) for index in range(NUM_PROMPTS)))
        end = time.monotonic()
        await asyncio.sleep(1.0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0.5)
        (await client.post("/flush_cache")).raise_for_status()
    gaps = [later - earlier for seen in streams for earlier, later in pairwise(seen) if start <= later]
    steps = [[step for step in read_steps(trace) if start <= step["start_s"] <= end] for trace in traces]
    busy = sum(step["duration_s"] for stage in steps for step in stage)
    return Seen(
        mode,
        end - start,
        max(gaps),
        1 - busy / (len(traces) * (end - start)),
        *stage_costs([step for stage in steps for step in stage]),
        sorted(ttfts),
    )


def stage_costs(steps: list[dict[str, Any]]) -> tuple[float, float]:
    """A decode turn of one stage, and what a whole prompt adds to one stage's turns."""
    decodes = [step["duration_s"] for step in steps if step["kind"] == "decode" and step["decode"]]
    decode_s = statistics.median(decodes) if decodes else 0.0
    prompts = [step for step in steps if step["prompt"]]
    rows = sum(step["num_prompt_rows"] * _share(step) for step in prompts)
    beside = sum(decode_s for step in prompts if step["kind"] == "layered" and step["decode"])
    total = sum(step["duration_s"] for step in prompts) - beside
    return decode_s, total * PROMPT_TOKENS / rows


def _share(step: dict[str, Any]) -> float:
    """Part of the stage's layers that a step's prompt rows went through."""
    start, end = step["group"] or (0, NUM_LAYERS // NUM_STAGES)
    return float(end - start) / (NUM_LAYERS // NUM_STAGES)


def four_stages(seen: dict[str, Seen]) -> dict[str, tuple[Timeline, float]]:
    """The same burst on four stages of half the layers."""
    stages = 2 * NUM_STAGES
    half = {mode: Costs(one.decode_s / 2, one.prompt_s / 2) for mode, one in seen.items()}
    num_groups = min(PROMPT_TOKENS // GROUP_TOKENS, NUM_LAYERS // stages)
    laid = {
        "layered": layered(half["layered"], stages, num_groups, NUM_PROMPTS),
        "chunks of 512": chunked(half["chunks of 512"], stages, PROMPT_TOKENS // 512, NUM_PROMPTS),
        "whole": chunked(half["whole"], stages, 1, NUM_PROMPTS),
    }
    return {mode: (line, line.worst_gap_s(ticks, stages)) for mode, (line, ticks) in laid.items()}


@click.command()
@click.option("--repetitions", default=3, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Where the record goes.")
def main(repetitions: int, out: Path | None) -> None:
    """Measure bursts of prompts in each mode, in turns, and print the table."""
    recipe = replace(
        find_recipe("qwen3_moe", "tiny", num_layers=NUM_LAYERS),
        preset="pipeline",
        hidden_size=512,
        num_heads=8,
        head_size=64,
        experts=ExpertShape(num_experts=32, num_experts_per_token=4, intermediate_size=512),
    )
    model = MODELS / "study-pipeline"
    make_from_recipe(recipe, model, force=True)
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--pp-size", "2", "--prefill-mode", "layered", "--skip-server-warmup", "--random-seed", "1"]
        flags += ["--max-total-tokens", "30000", "--disable-radix-cache", "--chunked-prefill-size", "1024"]
        flags += ["--layered-listeners", f"jsonl={folder}/steps-{{pp}}.jsonl"]
        env = {"SGLANG_NCCL_SO_PATH": "/nonexistent.so", "OMP_NUM_THREADS": "1"}
        traces = [Path(folder) / f"steps-{stage}.jsonl" for stage in range(NUM_STAGES)]
        with ServerProcess(model, flags, log_path=Path(folder) / "server.log", env=env) as server:
            asyncio.run(burst(server.base_url, "layered", 50, traces))
            rows = [
                asyncio.run(burst(server.base_url, mode, 100 * turn, traces))
                for turn in range(1, repetitions + 1)
                for mode in MODES
            ]
    middle = {mode: typical([row for row in rows if row.mode == mode]) for mode in MODES}
    Console(width=110).print(table(middle))
    if out is not None:
        write_record(out, spec(recipe.as_dict()), rows)


def typical(rows: list[Seen]) -> Seen:
    """Medians over the repetitions."""
    names = ("burst_s", "worst_gap_s", "bubble", "decode_s", "prompt_s")
    middle = {name: statistics.median(getattr(row, name) for row in rows) for name in names}
    ttfts = [statistics.median(each) for each in zip(*(row.ttfts_s for row in rows), strict=True)]
    return Seen(rows[0].mode, **middle, ttfts_s=ttfts)


def table(middle: dict[str, Seen]) -> Table:
    shown = Table(
        "mode",
        "prompt tokens/s",
        "median TTFT s",
        "worst gap s",
        "bubble",
        "4 stages: tokens/s",
        "gap",
        "bubble",
    )
    laid = four_stages(middle)
    tokens = NUM_PROMPTS * PROMPT_TOKENS
    for mode, one in middle.items():
        line, gap_s = laid[mode]
        cells = [
            f"{tokens / one.burst_s:.0f}",
            f"{statistics.median(one.ttfts_s):.2f}",
            f"{one.worst_gap_s:.3f}",
        ]
        cells += [
            f"{one.bubble:.2f}",
            f"{tokens / line.makespan_s:.0f}",
            f"{gap_s:.3f}",
            f"{line.bubble:.2f}",
        ]
        shown.add_row(mode, *cells)
    return shown


def spec(recipe: dict[str, Any]) -> dict[str, Any]:
    return {
        "recipe": recipe,
        "modes": MODES,
        "num_prompts": NUM_PROMPTS,
        "prompt_tokens": PROMPT_TOKENS,
        "num_running": NUM_RUNNING,
    }


if __name__ == "__main__":
    main()
