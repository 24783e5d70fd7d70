"""Duels that never ran: folders as `bench sweep` writes them; each step takes what a known machine takes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from sglang_layered.auto.step_times import amounts
from sglang_layered.core.pacing import StepLoad
from sglang_layered_lab.bench.metrics import Window
from sglang_layered_lab.bench.record import BenchRecord, Repetition
from sglang_layered_lab.bench.sweep_result import FORMAT, MANIFEST, SweepResult
from sglang_layered_lab.bench.trace import Arrival, RequestTrace
from sglang_layered_lab.cost.records import shape_of
from sglang_layered_lab.cost.sizes import sizes_of
from sglang_layered_lab.cost.ways import Beside, Way, prompt_steps

SERVER: dict[str, Any] = {"model": {"arch": "qwen3_moe", "preset": "bench"}, "flags": ["--dtype", "bfloat16"]}
BENCH = shape_of(BenchRecord({"server": SERVER}, {}))
PROMPT_TOKENS, OUTPUT_TOKENS, STREAM_TOKENS = 1024, 6, 64
REQUEST_S = 8e-3  # what a request waits for besides steps


class Law:
    """A machine whose steps take what the scheduler's model says, with these seconds per amount."""

    shape = BENCH
    sizes = sizes_of(BENCH, is_padded=True)
    coefficients = (4e-3, 20e-3, 0.3e-3, 2e-6, 60e-6, 40e-9, 3e-3, 1e-3)

    def step_s(self, load: StepLoad) -> float:
        return float(np.dot(self.coefficients, amounts(self.sizes, load)))


MODEL = Law()
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
    """A server that only knows time. With overlap a step's tokens leave when the next step has run."""

    model: Law
    num_streams: int
    overlap: bool
    noise: Callable[[], float]
    now_s: float = 1.0
    tokens: int = 1  # computed of each stream
    streams: list[list[Arrival]] = field(default_factory=list)
    pending: list[tuple[list[Arrival], int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.streams = [[Arrival(0.5, 1)] for _ in range(self.num_streams)]

    def beside(self) -> Beside:
        return Beside(self.num_streams, STREAM_TOKENS + self.tokens) if self.streams else Beside()

    def decode(self) -> None:
        """A step of the streams alone."""
        self.step(self.beside().step())

    def step(
        self, step: StepLoad, own: Sequence[tuple[list[Arrival], int]] = (), with_streams: bool = True
    ) -> None:
        """Compute a step, most often with the streams in it."""
        self.now_s += self.model.step_s(step) * self.noise()
        made = list(own)
        if with_streams and self.streams:
            self.tokens += 1
            made += [(arrivals, self.tokens) for arrivals in self.streams]
        leaving, self.pending = (self.pending, made) if self.overlap else (made, [])
        self.send(leaving)

    def send(self, leaving: Sequence[tuple[list[Arrival], int]]) -> None:
        """Tokens of a step reach the client a moment apart."""
        for index, (arrivals, number) in enumerate(leaving):
            arrivals.append(Arrival(self.now_s + 1e-6 * index, number))


@dataclass(frozen=True)
class Recipe:
    """What a sweep of duels holds."""

    arms: Sequence[str] = tuple(ARMS)
    decode_rows: Sequence[int] = (0, 4, 8)
    rounds: int = 3  # odd, with the prompts: a median is then one that was seen
    num_prompts: int = 5
    noise: float = 0.0
    overlap: bool = True
    model: Law = MODEL
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
    overlap = [] if recipe.overlap else ["--disable-overlap-schedule"]
    spec: dict[str, Any] = {
        "run": {"name": arm},
        "server": {
            "model": dict(SERVER["model"]),
            "flags": [*SERVER["flags"], *overlap, *recipe.flags.get(arm, flags)],
        },
        "load": {"arrivals": "closed", "num_clients": 1},
    }
    source = np.random.default_rng(len(arm) + rows)
    rounds = tuple(_repetition(recipe, way, rows, index, source) for index in range(recipe.rounds))
    return BenchRecord(spec, {"machine": {"gpus": []}}, rounds)


def _repetition(recipe: Recipe, way: Way, rows: int, index: int, source: np.random.Generator) -> Repetition:
    noise = lambda: float(np.exp(recipe.noise * source.standard_normal()))  # noqa: E731
    clock = Clock(recipe.model, rows, recipe.overlap, noise)
    for _ in range(3 if rows else 0):
        clock.decode()
    prompts = tuple(_prompt(clock, way, number, source) for number in range(recipe.num_prompts))
    background = tuple(
        RequestTrace(f"beside-{number}", 0, 0, STREAM_TOKENS, 9999, tuple(arrivals))
        for number, arrivals in enumerate(clock.streams)
    )
    return Repetition(index, prompts, Window(0.0, clock.now_s), {}, {}, {}, background)


def _prompt(clock: Clock, way: Way, number: int, source: np.random.Generator) -> RequestTrace:
    """Send a prompt at any moment of a decode step; run it, then decode beside the streams."""
    start_s, arrivals = clock.now_s, list[Arrival]()
    if clock.streams:
        clock.decode()
    sent_s = start_s + source.uniform(0.1, 0.9) * (clock.now_s - start_s)
    if not clock.streams:
        clock.now_s += REQUEST_S
    steps = prompt_steps(BENCH.num_layers, way, PROMPT_TOKENS, clock.beside(), is_padded=True)
    for index, step in enumerate(steps):
        if step.decode_rows:
            step = replace(step, decode_tokens=clock.beside().step().decode_tokens)
        first = [(arrivals, 1)] if index + 1 == len(steps) else []
        clock.step(step, first, with_streams=not way.decodes_wait)
    for token in range(1, OUTPUT_TOKENS):
        clock.step(clock.beside().joined_by(PROMPT_TOKENS + token).step(), [(arrivals, token + 1)])
    if clock.streams:
        clock.decode()
    else:
        clock.send(clock.pending)
        clock.pending = []
    return RequestTrace(f"prompt-{number}", sent_s, sent_s, PROMPT_TOKENS, OUTPUT_TOKENS, tuple(arrivals))
