"""What layered mode costs the scheduler: CPU time of a step, ours against SGLang's own loop.

The model is a stand-in of 32 layers that computes nothing, so what is left is scheduling: 256 running
requests and cohorts of 8192 prompt tokens in 16 groups. Three kinds of steps take turns in one process, so
that drift hits all of them: decode in SGLang's loop, decode in ours, and layered steps. At the end policy
auto decides and learns in every step, and that alone is timed: what steps that admit a cohort decide
(*admitting*), and all others. Then the four questions are timed (`questions_cost.py`). Run by
`scripts/bench-scheduler`.
"""

from __future__ import annotations

import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table
from sglang.srt.layers.logits_processor import LogitsProcessorOutput
from sglang.srt.model_executor.forward_batch_info import PPProxyTensors
from torch import nn

from harness import SteppedScheduler
from prompts import prompt
from questions_cost import QUESTIONS, questions
from sglang_layered.config import LayeredConfig
from sglang_layered.scheduler.loop import LayeredLoop
from sglang_layered_lab.models import make_model

MODELS = Path(__file__).resolve().parents[2] / "out" / "test-models"

NUM_LAYERS, NUM_RUNNING, COHORT_TOKENS, GROUP_TOKENS = 32, 256, 8192, 512
LIMIT_MS = 0.3
DECIDING_LIMIT_MS = 0.1
PARTS = {  # of policy auto, by calls of its driver
    "deciding": ("before_admission", "pace"),
    "learning": ("step_begins", "_results_are_due", "_results_are_in"),
}


class EmptyStack(nn.Module):
    """Layers [start_layer, end_layer) that do nothing."""

    def __init__(self, group: Any) -> None:
        super().__init__()
        self.start_layer, self.end_layer, self.pp_group = 0, NUM_LAYERS, group


class EmptyModel(nn.Module):
    """A pipeline-parallel model that computes nothing: rows of 8 numbers in, rows or fixed logits out."""

    def __init__(self, group: Any, vocab_size: int) -> None:
        super().__init__()
        self.pp_group, self.model = group, EmptyStack(group)
        self._logits = torch.rand(NUM_RUNNING + 64, vocab_size)

    def forward(
        self, input_ids: torch.Tensor, positions: Any, batch: Any, pp_proxy_tensors: Any = None, **kwargs: Any
    ) -> Any:
        if self.pp_group.is_last_rank:
            return LogitsProcessorOutput(next_token_logits=self._logits[: batch.batch_size].clone())
        rows = (
            torch.empty(len(input_ids), 8) if pp_proxy_tensors is None else pp_proxy_tensors["hidden_states"]
        )
        return PPProxyTensors({"hidden_states": rows, "residual": rows})


@dataclass
class Bench:
    """One scheduler with the empty model in it."""

    stepped: SteppedScheduler

    def __post_init__(self) -> None:
        scheduler = self.stepped.scheduler
        runner = scheduler.tp_worker.model_runner
        runner.model = EmptyModel(runner.model.pp_group, scheduler.model_config.vocab_size)
        self.loop = LayeredLoop(scheduler, LayeredConfig("layered", layered_group_tokens=GROUP_TOKENS))
        scheduler.layered_loop = self.stepped.loop = self.loop
        self.fill()

    def fill(self) -> None:
        """As many requests as are to run, the earlier ones ended: they have a bounded number of tokens."""
        for req in [*self.stepped.scheduler.running_batch.reqs]:
            self.stepped.abort(req.rid)
        self.decode(2)
        for seed in range(NUM_RUNNING):
            self.stepped.send(prompt(8, seed), 1500)
        self.decode(8)

    def decode(self, count: int) -> list[float]:
        """CPU milliseconds of decode steps in our loop."""
        return [self._timed() for _ in range(count)]

    def cohort(self, seed: int) -> list[float]:
        """CPU milliseconds of the layered steps of one cohort; its requests end with their first token."""
        for part in range(4):
            self.stepped.send(prompt(COHORT_TOKENS // 4, seed * 4 + part), 1)
        times = [self._timed()]
        while self.loop.inflight is not None:
            times.append(self._timed())
        return times

    def stock(self, count: int) -> list[float]:
        """CPU milliseconds of decode steps in SGLang's own overlap loop."""
        stamps: list[float] = []

        def stamp() -> bool:
            stamps.append(time.thread_time())
            return len(stamps) <= count + 1

        self.stepped.run_stock(stamp)
        return [(end - start) * 1e3 for start, end in pairwise(stamps[1:])]

    def auto(self, cohorts: int) -> dict[str, list[float]]:
        """CPU milliseconds a step spends on policy auto: its views and decisions, its deadlines and learning.

        The limit cannot be kept, so a cohort takes a step a layer.
        """
        controls, driver = self.loop.controls, self.loop.driver
        controls._adopt(replace(controls.config, layered_policy="auto", slo_tbt_ms=1e-3), "bench")
        self.decode(4)
        spent = Spent()
        for part, names in PARTS.items():
            for name in names:
                setattr(driver, name, spent.counted(getattr(driver, name), part))
        self.loop.stream.remove(driver)  # it holds the calls as they were
        self.loop.stream.add(driver, is_vital=True)
        times: dict[str, list[float]] = {"admitting": [], "deciding": [], "learning": []}
        for seed in range(1000, 1000 + cohorts):
            for part in range(4):
                self.stepped.send(prompt(COHORT_TOKENS // 4, seed * 4 + part), 1)
            times["admitting"].append(spent.of(self.loop.step)["deciding"])
            while self.loop.inflight is not None:
                for kind, time_ms in spent.of(self.loop.step).items():
                    times[kind].append(time_ms)
            self.decode(2)
        return times

    def _timed(self) -> float:
        start = time.thread_time()
        self.loop.step()
        return (time.thread_time() - start) * 1e3


class Spent:
    """CPU time of calls by part; a call inside of another counts with the outer one."""

    def __init__(self) -> None:
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._depth = 0

    def counted(self, call: Callable[..., Any], part: str) -> Callable[..., Any]:
        """The call, its time added to the part."""

        def counted(*args: Any, **kwargs: Any) -> Any:
            start = time.thread_time()
            self._depth += 1
            try:
                return call(*args, **kwargs)
            finally:
                self._depth -= 1
                if not self._depth:
                    self._seconds[part] += time.thread_time() - start

        return counted

    def of(self, step: Callable[[], None]) -> dict[str, float]:
        """Milliseconds that a step spends on each part."""
        self._seconds = dict.fromkeys(PARTS, 0.0)
        step()
        return {part: 1e3 * seconds for part, seconds in self._seconds.items()}


def measure(rounds: int) -> dict[str, list[float]]:
    """CPU milliseconds of every step, by kind."""
    model = make_model("qwen3_moe", "tiny", MODELS / "qwen3_moe")
    bench = Bench(
        SteppedScheduler(
            model, max_total_tokens=600_000, chunked_prefill_size=COHORT_TOKENS, max_running_requests=300
        )
    )
    times: dict[str, list[float]] = {"stock": [], "decode": [], "first": [], "middle": [], "last": []}
    for turn in range(rounds):
        times["stock"] += bench.stock(20)
        times["decode"] += bench.decode(21)[1:]
        first, *middle, last = bench.cohort(turn)
        times["first"].append(first)
        times["middle"] += middle
        times["last"].append(last)
        bench.decode(2)
    times |= bench.auto(rounds)
    bench.fill()
    return times | questions(bench.stepped, rounds)


def summary(times: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Median and quartiles of each kind, and the median's distance from SGLang's decode step."""
    base = statistics.median(times["stock"])
    rows = {}
    for kind, values in times.items():
        low, middle, high = statistics.quantiles(values, n=4)
        over = middle if kind in ("admitting", *PARTS, *QUESTIONS) else middle - base
        rows[kind] = {"q1_ms": low, "median_ms": middle, "q3_ms": high, "over_stock_ms": over}
    return rows


@click.command()
@click.option("--rounds", default=20, show_default=True, help="Cohorts to run.")
@click.option("--record", type=click.Path(path_type=Path), help="Write spec, versions and raw data here.")
def main(rounds: int, record: Path | None) -> None:
    """Print the CPU time of scheduler steps.

    Exits with 1 when a middle layered step costs more than 0.3 ms, or deciding in one more than 0.1 ms, or
    one of the four questions. The limits are those of a machine whose decode step of SGLang's takes 2 ms.
    """
    times = measure(rounds)
    rows = summary(times)
    table = Table("step", "steps", "q1 ms", "median ms", "q3 ms", "over stock ms")
    for kind, row in rows.items():
        table.add_row(kind, str(len(times[kind])), *(f"{value:.3f}" for value in row.values()))
    Console().print(table)
    if record is not None:
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(json.dumps({**spec(rounds), "summary": rows, "times_ms": times}, indent=1) + "\n")
    too_slow = rows["middle"]["over_stock_ms"] > LIMIT_MS
    decided = ("deciding", *QUESTIONS)
    sys.exit(too_slow or any(rows[kind]["median_ms"] > DECIDING_LIMIT_MS for kind in decided))


def spec(rounds: int) -> dict[str, Any]:
    """What was run, and with what."""
    return {
        "spec": {
            "num_layers": NUM_LAYERS,
            "num_running": NUM_RUNNING,
            "cohort_tokens": COHORT_TOKENS,
            "group_tokens": GROUP_TOKENS,
            "rounds": rounds,
        },
        "versions": {name: version(name) for name in ("sglang", "torch", "sglang-layered")},
        "machine": {"python": platform.python_version(), "machine": platform.machine()},
    }


if __name__ == "__main__":
    main()
