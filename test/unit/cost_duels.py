"""Duels that never ran: folders as `bench sweep` writes them; each step takes what a known law says."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from sglang_layered.bench.metrics import Window
from sglang_layered.bench.record import BenchRecord, Repetition
from sglang_layered.bench.sweep_result import FORMAT, MANIFEST, SweepResult
from sglang_layered.bench.trace import Arrival, RequestTrace
from sglang_layered.cost.costs import StepCosts
from sglang_layered.cost.coverage import uniform_coverage
from sglang_layered.cost.model import StepModel
from sglang_layered.cost.records import shape_of
from sglang_layered.cost.ways import Beside, Way, prompt_steps

SERVER: dict[str, Any] = {"model": {"arch": "qwen3_moe", "preset": "bench"}, "flags": ["--dtype", "bfloat16"]}
BENCH = shape_of(BenchRecord({"server": SERVER}, {}))
LAW = StepCosts("sum", 1 / 10e9, 1 / 120e9, 1 / 40e9, 60e-6, 30e-6, 15e-6, request=8e-3)
MODEL = StepModel(BENCH, uniform_coverage, LAW, "padded")
PROMPT_TOKENS, OUTPUT_TOKENS, STREAM_TOKENS = 1024, 6, 64
ARMS: Mapping[str, tuple[Way, tuple[str, ...]]] = {
    "whole": (Way("whole"), ()),
    **{
        f"mixed-{size}": (Way("mixed", size), ("--enable-mixed-chunk", "--chunked-prefill-size", str(size)))
        for size in (64, 128, 256, 512)
    },
    **{
        f"layered-{groups}": (
            Way("layered", groups),
            ("--prefill-mode", "layered", f"--layered-num-groups={groups}"),
        )
        for groups in (2, 4, 8)
    },
}


@dataclass
class Clock:
    """A server that only knows time; streams get a token in each step."""

    model: StepModel
    streams: list[list[Arrival]]
    noise: Callable[[], float]
    now_s: float = 1.0

    def beside(self) -> Beside:
        contexts = [STREAM_TOKENS + arrivals[-1].num_tokens for arrivals in self.streams]
        return Beside(len(contexts), sum(contexts) / len(contexts)) if contexts else Beside()

    def step(self, seconds: float, tokens: bool = True) -> float:
        """One step; the streams' tokens reach the client a moment apart."""
        self.now_s += seconds * self.noise()
        for index, arrivals in enumerate(self.streams if tokens else ()):
            late_s = 1e-6 * (index + 1)
            arrivals.append(Arrival(self.now_s + late_s, arrivals[-1].num_tokens + 1))
        return self.now_s


@dataclass(frozen=True)
class Recipe:
    """What a sweep of duels holds."""

    arms: Sequence[str] = tuple(ARMS)
    decode_rows: Sequence[int] = (0, 4, 8)
    rounds: int = 2
    num_prompts: int = 5
    noise: float = 0.0
    model: StepModel = MODEL
    counters: Callable[[Way, int], Mapping[str, float]] | None = None
    flags: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # instead of the arm's


def write_duels(folder: Path, recipe: Recipe) -> SweepResult:
    """Write a sweep of duels and read it back."""
    folder.mkdir(parents=True)
    cells = []
    for rows in recipe.decode_rows:
        for arm in recipe.arms:
            name = f"{arm}@{rows}.json"
            record = _record(recipe, arm, rows)
            record.write(folder / name)
            cells.append({"arm": arm, "point": {"rows": rows}, "record": name})
    arms = [{"name": arm, "mode": arm.split("-")[0], "label": ""} for arm in recipe.arms]
    manifest = {"format": FORMAT, "sweep": {"name": folder.name, "title": ""}, "arms": arms}
    (folder / MANIFEST).write_text(json.dumps(manifest | {"grid": {}, "cells": cells}))
    return SweepResult.read(folder)


def _record(recipe: Recipe, arm: str, rows: int) -> BenchRecord:
    way, flags = ARMS[arm]
    spec: dict[str, Any] = {
        "run": {"name": arm},
        "server": {
            "model": dict(SERVER["model"]),
            "flags": [*SERVER["flags"], *recipe.flags.get(arm, flags)],
        },
        "load": {"arrivals": "closed", "num_clients": 1},
    }
    source = np.random.default_rng(len(arm) + rows)
    rounds = tuple(_repetition(recipe, way, rows, index, source) for index in range(recipe.rounds))
    return BenchRecord(spec, {"machine": {"gpus": []}}, rounds)


def _repetition(recipe: Recipe, way: Way, rows: int, index: int, source: np.random.Generator) -> Repetition:
    streams = [[Arrival(0.5, 1)] for _ in range(rows)]
    clock = Clock(recipe.model, streams, lambda: float(np.exp(recipe.noise * source.standard_normal())))
    prompts = tuple(_prompt(clock, way, number, source) for number in range(recipe.num_prompts))
    background = tuple(
        RequestTrace(f"beside-{number}", 0, 0, STREAM_TOKENS, 9999, tuple(arrivals))
        for number, arrivals in enumerate(streams)
    )
    usage = {"counters": recipe.counters(way, rows) if recipe.counters else None}
    return Repetition(index, prompts, Window(0.0, clock.now_s), {}, {}, usage, background)


def _prompt(clock: Clock, way: Way, number: int, source: np.random.Generator) -> RequestTrace:
    """Send a prompt at any moment of a decode step; run it, then decode beside the streams."""
    start_s = clock.now_s
    if clock.streams:
        clock.step(clock.model.step_s(clock.beside().step()))
    sent_s = start_s + source.uniform(0.1, 0.9) * (clock.now_s - start_s)
    if not clock.streams:
        clock.now_s += LAW.request
    beside = clock.beside()
    for step in prompt_steps(BENCH.num_layers, way, PROMPT_TOKENS, beside):
        if step.decode_rows:
            step = replace(step, context_tokens=clock.beside().context_tokens)
        clock.step(clock.model.step_s(step), tokens=not way.decodes_wait)
    arrivals = [Arrival(clock.now_s, 1)]
    for _ in range(OUTPUT_TOKENS - 1):
        decode = clock.beside().joined_by(PROMPT_TOKENS + len(arrivals)).step()
        arrivals.append(Arrival(clock.step(clock.model.step_s(decode)), len(arrivals) + 1))
    return RequestTrace(f"prompt-{number}", sent_s, sent_s, PROMPT_TOKENS, OUTPUT_TOKENS, tuple(arrivals))
