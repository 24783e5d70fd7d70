"""How much of our code a middle step of one cohort enters: files and calls, counted by a profiler.

A reader of the runtime walks the same way. `scripts/profile-step` prints it; test_step_profile.py holds it to
its limits.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import click

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS / "models"), str(TESTS)]

from tiny_models import quantized_model, tiny_model, use_the_cpu  # noqa: E402

use_the_cpu()

from own_process import in_forks  # noqa: E402
from quantized_on_cpu import run_without_amx, use_ops  # noqa: E402

import sglang_layered  # noqa: E402
from harness import SteppedScheduler  # noqa: E402
from prompts import prompt  # noqa: E402

FUNCTIONS = False
NUM_LAYERS = 8  # of the tiny model
CASES = {"rule": (False, None), "auto": (True, None), "rule, fp8-block": (False, "fp8-block")}
OURS = str(Path(sglang_layered.__file__).parent)


class Entered:
    """Calls into our files by file; comprehensions and generators belong to the function around them."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self._frames: list[FrameType] = []  # a generator's frame is entered again each time it goes on

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if event != "call" or frame in self._frames:
            return
        self._frames.append(frame)
        if code.co_filename.startswith(OURS) and not code.co_name.startswith("<"):
            self.calls[code.co_filename[len(OURS) + 1 :] + (":" + code.co_name if FUNCTIONS else "")] += 1


def middle_step(stepped: SteppedScheduler) -> Counter[str]:
    """Our calls in the third step of a cohort, beside four decoding requests: the median of nine."""
    for seed in range(4):
        stepped.send(prompt(40, 10 + seed), 200)
    stepped.step(2)
    seen = []
    for seed in range(2, 11):
        stepped.send(prompt(400, seed), 2)
        stepped.step_until(lambda: stepped.next_group == 2)
        entered = Entered()
        sys.setprofile(entered)
        try:
            stepped.step()
        finally:
            sys.setprofile(None)
        seen.append(entered.calls)
        stepped.step_until(lambda: stepped.next_group is None)
    return sorted(seen, key=Counter.total)[len(seen) // 2]


def _quantized(method: str) -> Path:
    run_without_amx()
    use_ops()
    return quantized_model("qwen3_moe", method, num_layers=NUM_LAYERS)


def served(auto: bool, weights: str | None) -> Counter[str]:
    """The calls of a middle step of one server."""
    flags: dict[str, Any] = (
        dict(layered_policy="auto", slo_tbt_ms=1e-3) if auto else dict(layered_num_groups=4)
    )
    model = tiny_model("qwen3_moe") if weights is None else _quantized(weights)
    stepped = SteppedScheduler(
        model,
        max_total_tokens=3000,
        chunked_prefill_size=512,
        layered_check_invariants="basic",
        enable_metrics=auto,
        attention_backend="torch_native",  # ours for CPUs is no part of a step's way, as kernels are none
        **flags,
    )
    stepped.loop.stream.remove(stepped.loop.report)  # nobody listens
    stepped.loop.is_heard = False
    return middle_step(stepped)


@click.command()
@click.option("--auto/--rule", default=False, help="Policy auto with metrics, or the rule without.")
@click.option("--weights", help="A method of quantization, such as fp8-block; without it floats.")
@click.option("--each", is_flag=True, help="Print counts by file of what the test asks for, as JSON.")
def main(auto: bool, weights: str | None, each: bool) -> None:
    """Print how many of our files and functions a middle step enters."""
    if each:
        cases = {name: partial(served, *case) for name, case in CASES.items()}
        print(json.dumps(in_forks(cases)))
        return
    calls = served(auto, weights)
    for name, count in calls.most_common():
        print(f"{count:5} {name}")
    print(f"{sum(calls.values()):5} calls in {len(calls)} files")


if __name__ == "__main__":
    main()
