"""Any sequence of operations on two tensor ranks, each in a fork; writes what each rank counted as JSON.

Both draw the same operations, and rank 1 has another clock. Strict checks compare what the ranks run in every
step; `ExactScheduler` checks on each of them what must hold after it.

python test/runner/rank_properties_run.py OUT.json with-overlap|without-overlap EXAMPLES STEPS
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import random
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(Path(__file__).parent), str(TESTS)]

from tiny_models import tiny_model, use_the_cpu  # noqa: E402

use_the_cpu()
# Without NCCL SGLang falls back to gloo.
os.environ.update(SGLANG_NCCL_SO_PATH="/nonexistent.so", SGLANG_CPU_OMP_THREADS_BIND="0|1")

from hypothesis import HealthCheck, Phase, settings  # noqa: E402
from hypothesis.stateful import run_state_machine_as_test  # noqa: E402
from own_process import in_forks  # noqa: E402

from harness import Rank, SteppedScheduler  # noqa: E402
from scheduler_machine import SchedulerMachine  # noqa: E402
from sglang_layered.core import bounds  # noqa: E402
from sglang_layered.scheduler import rank_clock  # noqa: E402
from sglang_layered_lab.serving import free_port  # noqa: E402

OVERTAKING: dict[str, Any] = {"layered_max_parked": 1, "layered_short_tokens": 100}
CASES: dict[str, dict[str, Any]] = {
    "short ones overtake": OVERTAKING,
    "a policy answers at random": OVERTAKING | {"layered_policy": "wishes:AtRandom"},
}


class RankScheduler(SteppedScheduler):
    """Steps as the loop makes them: what is received first has rank 0's clock."""

    num_steps = num_operations = 0

    def step(self, times: int = 1) -> None:
        for _ in range(times):
            if not self.scheduler._engine_paused:
                received = self.scheduler.request_receiver.recv_requests()
                self.scheduler.process_input_requests(received)
                self.num_steps += 1
                super().step()


class RankMachine(SchedulerMachine):
    """Counts its operations."""

    def then(self, steps: int) -> None:
        self.stepped.num_operations += 1  # type: ignore[attr-defined]
        super().then(steps)


def clock_of(rank: int) -> Any:
    """Rank 0's counts its readings; the other one's is elsewhere, and goes as it likes."""
    counted = map(float, itertools.count())
    dice = random.Random(7)
    return SimpleNamespace(monotonic=lambda: next(counted) if rank == 0 else dice.uniform(0, 1e6))


def found_on(rank: int, port: int, overlaps: bool, examples: int, steps: int) -> dict[str, Any]:
    logging.disable(logging.ERROR)  # SGLang warns of every retraction and every change of settings
    stepped = RankScheduler(
        tiny_model("qwen3_moe"),
        Rank(rank, 0, port),
        tp_size=2,
        max_total_tokens=3000,
        layered_group_tokens=64,
        chunked_prefill_size=512,
        enable_streaming_session=True,
        disable_overlap_schedule=not overlaps,
    )
    bounds.MOST_PASSED, bounds.MOST_HELD_S = 8, 5.0
    rank_clock.time = clock_of(rank)
    asked = settings(
        max_examples=examples,
        stateful_step_count=steps,
        derandomize=True,  # so both ranks draw the same
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    seen: dict[str, Any] = {}
    for name, flags in CASES.items():
        stepped.num_steps = stepped.num_operations = 0
        with stepped.queue_policy("fcfs"):
            run_state_machine_as_test(partial(RankMachine, stepped, flags), settings=asked)
        seen[name] = {"operations": stepped.num_operations, "steps": stepped.num_steps}
    return seen


def main(out: Path, overlap: str, examples: str, steps: str) -> None:
    port, overlaps = free_port(), overlap == "with-overlap"
    ranks = {
        str(rank): partial(found_on, rank, port, overlaps, int(examples), int(steps)) for rank in range(2)
    }
    out.write_text(json.dumps([*in_forks(ranks, at_once=True).values()]))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
