"""The stage `coverage`: experts that steps touch, beside the paper's table; SGLang schedules, no graphs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from sglang_layered.errors import GpuHostError
from sglang_layered_lab.cost.coverage import uniform_coverage
from sglang_layered_lab.cost.shape import ModelShape, named
from sglang_layered_lab.gpu.client import generate, wait_for
from sglang_layered_lab.gpu.duel import ArmServer, serving
from sglang_layered_lab.gpu.models import model_of
from sglang_layered_lab.gpu.profiles import Arm
from sglang_layered_lab.gpu.stages import Job
from sglang_layered_lab.models.router_targets import DECODE, CoverageTarget, read_targets
from sglang_layered_lab.watch.sample import Sample, observed
from sglang_layered_lab.watch.source import Scraper

COUNTING = Arm("counting", ("--enable-metrics", "--enable-expert-traffic-metrics", "--disable-cuda-graph"))
STREAM_TOKENS = 400  # of a stream: more than are counted
NUM_COUNTED = 40  # tokens of each stream that are counted
NUM_PROMPTS = 4
NAME = "expert_coverage_ratio"
MOST_ROWS = 64


def coverage(job: Job) -> None:
    """Experts that decode steps and prompts touch, against the paper's table and uniform routing."""
    targets = [row for row in read_targets().rows if row.kind != DECODE or row.num_tokens <= MOST_ROWS]
    todo = [row for row in targets if not job.record.has(str(row))]
    if not todo:
        return
    job.budget.need(min(job.profile.start_s, job.budget.total_s) / 2)
    profile = replace(job.profile, max_new_tokens=STREAM_TOKENS)
    shape = named(str(model_of(profile, job.folder)))
    with serving(profile, COUNTING, job.folder / "coverage", job.budget.left_s) as (_, running):
        for row in todo:
            job.record.add(_counted(running, row, shape, job.budget.left_s))


def _counted(running: ArmServer, row: CoverageTarget, shape: ModelShape, left_s: float) -> dict[str, Any]:
    """Mean over steps of the part of a layer's experts that they touch."""
    is_decode = row.kind == DECODE
    rows = (0, row.num_tokens) if is_decode else (row.num_tokens, 0)
    ask = _decode if is_decode else _prompts
    with Scraper(running.base_url) as scraper:
        before: list[Sample] = []
        ask(running, row.num_tokens, left_s, lambda: before.append(scraper.scrape()))
        found = observed(before[0], scraper.scrape(), NAME, phase="decode" if is_decode else "prompt")
    if found.mean is None:
        raise GpuHostError(f"{row}: the server counted no experts; see its log, {COUNTING.name}.log")
    return {
        "key": str(row),
        "paper": row.coverage,
        "uniform": uniform_coverage(shape, *rows),
        "measured": found.mean,
        "steps": int(found.num_observations),
    }


def _decode(running: ArmServer, num_rows: int, left_s: float, begin: Callable[[], None]) -> None:
    with running.crowd(num_rows, left_s) as crowd:
        begin()
        ends = [len(stream.arrivals_s) + NUM_COUNTED for stream in crowd.streams]
        wait_for(
            lambda: all(
                len(stream.arrivals_s) >= end for stream, end in zip(crowd.streams, ends, strict=True)
            ),
            left_s,
        )


def _prompts(running: ArmServer, num_tokens: int, left_s: float, begin: Callable[[], None]) -> None:
    begin()
    for _ in range(NUM_PROMPTS):
        generate(running.base_url, running.draw(num_tokens), 1, left_s)
