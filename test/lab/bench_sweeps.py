"""Sweeps that never ran: folders as `bench sweep` writes them, with made-up traces."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from sglang_layered_lab.bench.metrics import Window
from sglang_layered_lab.bench.record import BenchRecord, Repetition
from sglang_layered_lab.bench.sweep_result import FORMAT, MANIFEST, SweepResult
from sglang_layered_lab.bench.sweep_spec import Cell, sweep_from
from sglang_layered_lab.bench.trace import Arrival, RequestTrace

MADE_WITH = {
    "versions": {"sglang": "0.5.17", "torch": "2.9"},
    "commit": "0123abc",
    "patches_sha256": "f00d" * 16,
    "machine": {"cpu": "a made-up processor", "cores": 2, "memory_gib": 24.0, "gpus": []},
}
GAP_S, NUM_OUTPUT = 0.03, 24
BACKGROUND_TOKENS = 2000


@dataclass(frozen=True)
class Made:
    """An arm: its TTFT without load, its pause beside each prompt, its experts' GB a request by phase."""

    mode: str
    label: str
    ttft_s: float
    pause_s: float
    gigabytes: Mapping[str, float] = field(default_factory=dict)
    flags: tuple[str, ...] = ()


ARMS: Mapping[str, Made] = {
    "default": Made("default", "8192", 0.8, 0.70, {"prompt": 2.0, "decode": 1.1}),
    "mixed-512": Made("mixed", "chunk 512", 1.9, 0.17, {"hybrid": 8.1, "decode": 0.9}),
    "mixed-1024": Made("mixed", "chunk 1024", 1.4, 0.30, {"hybrid": 5.1, "decode": 0.9}),
    "layered-2": Made("layered", "G=2", 0.9, 0.42, {"hybrid": 2.0, "decode": 1.4}),
    "layered-4": Made("layered", "G=4", 1.0, 0.22, {"hybrid": 2.0, "decode": 2.0}),
    "layered-8": Made("layered", "G=8", 1.3, 0.14, {"hybrid": 2.0, "decode": 3.2}),
}


@dataclass(frozen=True)
class Recipe:
    """What a made-up sweep holds."""

    name: str = "made-up"
    title: str = "A made-up sweep"
    arms: Mapping[str, Made] = field(default_factory=lambda: dict(ARMS))
    rates: Sequence[float] = ()
    rounds: int = 3
    num_requests: int = 12
    num_background: int = 0
    with_limits: bool = True
    with_experts: bool = True
    joules: float | None = None
    fail: Sequence[tuple[str, int, int]] = ()  # arm, round, request
    noise: float = 0.03


def write_sweep(folder: Path, recipe: Recipe | None = None, **changes: Any) -> SweepResult:
    """Write a sweep and read it back."""
    recipe = replace(recipe or Recipe(), **changes)
    spec = sweep_from(_document(recipe), folder)
    folder.mkdir(parents=True)
    (folder / MANIFEST).write_text(json.dumps({"format": FORMAT} | spec.to_json()))
    for cell in spec.cells:
        rounds = tuple(_repetition(recipe, cell, index) for index in range(recipe.rounds))
        BenchRecord(cell.spec.to_json(), MADE_WITH, rounds).write(folder / cell.file_name)
    return SweepResult.read(folder)


def _document(recipe: Recipe) -> dict[str, Any]:
    load: dict[str, Any] = {"arrivals": "poisson", "rate_per_s": 1.0, "num_requests": recipe.num_requests}
    if recipe.num_background:
        load["background"] = {"num_streams": recipe.num_background, "output_tokens": BACKGROUND_TOKENS}
    lengths = {"distribution": "fixed", "tokens": 2048}, {"distribution": "fixed", "tokens": NUM_OUTPUT}
    document: dict[str, Any] = {
        "sweep": {"name": recipe.name, "title": recipe.title, "rounds": recipe.rounds},
        "server": {"model": {"arch": "qwen3_moe", "preset": "tiny"}},
        "load": load,
        "workload": {"lengths": {"prompt": lengths[0], "output": lengths[1]}},
        "arms": [
            {"name": name, "mode": arm.mode, "label": arm.label, "flags": list(arm.flags)}
            for name, arm in recipe.arms.items()
        ],
    }
    if recipe.with_limits:
        document["slo"] = {"ttft_ms": 2500, "tbt_ms": 350}
    if recipe.rates:
        document["grid"] = {"load.rate_per_s": list(recipe.rates)}
    return document


def _repetition(recipe: Recipe, cell: Cell, index: int) -> Repetition:
    arm, rate = recipe.arms[cell.arm.name], cell.spec.load.rate_per_s or 1.0
    drift = np.random.default_rng(index).uniform(0.9, 1.1)  # of the machine: the same for all arms
    rng = np.random.default_rng([index, list(recipe.arms).index(cell.arm.name), int(100 * rate)])
    due_s = np.cumsum(np.random.default_rng(index).exponential(1 / rate, recipe.num_requests))
    traces = []
    for request, due in enumerate(due_s):
        slow = float(drift * (1 + rate**2) / 2 * np.exp(rng.normal(scale=recipe.noise)))
        gaps_s = np.full(NUM_OUTPUT - 1, GAP_S * slow)
        gaps_s[rng.integers(0, NUM_OUTPUT - 1, 1 + int(rate))] = arm.pause_s * slow
        times_s = due + np.cumsum([arm.ttft_s * slow, *gaps_s])
        arrivals = tuple(Arrival(float(time_s), count + 1) for count, time_s in enumerate(times_s))
        failed = (cell.arm.name, index, request) in recipe.fail
        name = f"{cell.spec.run.name}-{index}-{request}"
        traces.append(
            RequestTrace(
                name,
                float(due),
                float(due) + 0.001,
                2048,
                NUM_OUTPUT,
                arrivals[:3] if failed else arrivals,
                "the stream broke" if failed else None,
            )
        )
    return Repetition(
        index,
        tuple(traces),
        Window(0.0, float(due_s[-1]) + 1.0),
        {"core_share": 0.1},
        {},
        _usage(recipe, arm),
        tuple(_background(arm, traces, stream, float(drift)) for stream in range(recipe.num_background)),
    )


def _background(arm: Made, prompts: Sequence[RequestTrace], stream: int, drift: float) -> RequestTrace:
    """A token every GAP_S, and one pause in the middle of each prompt's time to its first token."""
    middles_s = sorted((each.sent_s + each.arrivals[0].time_s) / 2 for each in prompts)
    end_s, time_s, times_s = prompts[-1].arrivals[-1].time_s, -0.2 + stream / 1000, []
    while time_s < end_s:
        times_s.append(time_s)
        due = [middle for middle in middles_s if time_s <= middle < time_s + GAP_S]
        time_s += arm.pause_s * drift if due else GAP_S
    arrivals = tuple(Arrival(each, count + 1) for count, each in enumerate(times_s))
    return RequestTrace(f"beside-{stream}", -0.3, -0.3, 64, BACKGROUND_TOKENS, arrivals, "broken off")


def _usage(recipe: Recipe, arm: Made) -> dict[str, Any]:
    num_bytes = {phase: int(each * 1e9 * recipe.num_requests) for phase, each in arm.gigabytes.items()}
    tokens = {"prompt": 2048 * recipe.num_requests, "output": NUM_OUTPUT * recipe.num_requests}
    counters = {}
    for phase in arm.gigabytes:
        labels = f'{{phase="{phase}",tp_rank="0"}}'
        counters[f"expert_coverage_ratio_sum{labels}"] = 30.0
        counters[f"expert_coverage_ratio_count{labels}"] = 40.0
    joules = recipe.joules
    return {
        "window_s": 10.0,
        "expert_bytes": num_bytes if recipe.with_experts else None,
        "joules": None if joules is None else {"gpu0": joules * (1 + arm.pause_s)},
        "energy_tokens": None if joules is None else tokens,
        "counters": counters if recipe.with_experts else None,
        "doubts": [],
    }
