"""Expert bytes, energy and limits of stepped engine steps, against what hooks of our own saw."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sglang.srt.layers.moe.topk import TopK
from torch import nn

from harness import SteppedScheduler
from prompts import prompt
from release_differences import as_stage
from sglang_layered.core.choice import StrategyChoice
from sglang_layered.errors import UnsupportedError
from sglang_layered.runner.execution import Execution
from sglang_layered.runner.expert_watch import ExpertWatch

ASK = {"sampling": {"custom_params": {"layered_report": True}}}
LAYERED = ("fused", "sequential")


class Seen:
    """Every call of every MoE layer: layer, number of rows, the set of experts of each row."""

    def __init__(self, stepped: SteppedScheduler) -> None:
        model = stepped.scheduler.tp_worker.model_runner.model
        self.calls: list[tuple[int, list[set[int]]]] = []
        modules = [module for module in model.modules() if isinstance(module, TopK)]
        self._hooks = [
            module.register_forward_hook(lambda _, __, output, layer=layer: self._hear(layer, output))
            for layer, module in enumerate(modules)
        ]

    def _hear(self, layer: int, output: Any) -> None:
        self.calls.append((layer, [set(row) for row in output.topk_ids.tolist()]))

    def take(self) -> list[tuple[int, list[set[int]]]]:
        calls, self.calls = self.calls, []
        return calls

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()


@pytest.fixture
def seen(stepped: SteppedScheduler) -> Iterator[Seen]:
    watcher = Seen(stepped)
    yield watcher
    watcher.remove()


@pytest.fixture
def execution(stepped: SteppedScheduler) -> Iterator[Execution]:
    found = stepped.loop._execution
    usual = found.choice
    yield found
    found.choice = usual


def bytes_now(stepped: SteppedScheduler) -> dict[str, int]:
    return dict(stepped.scheduler.layered_observer.state()["expert_traffic"]["load_bytes"])


def expert_bytes(stepped: SteppedScheduler) -> int:
    """From the model's configuration: three matrices of float32 an expert."""
    config = stepped.scheduler.model_config.hf_text_config
    return 3 * config.hidden_size * config.moe_intermediate_size * 4


def union_bytes(calls: list[tuple[int, list[set[int]]]], size: int) -> int:
    return sum(len(set().union(*rows)) * size for _, rows in calls)


def reported(stepped: SteppedScheduler, rids: list[str], key: str) -> dict[str, list[float]]:
    return {rid: stepped.reqs[rid].customized_info[key] for rid in rids}


@pytest.mark.parametrize("strategy", LAYERED)
@pytest.mark.parametrize("late_tokens", [300, 1200])  # the second comes in chunks
def test_bytes_are_those_of_the_distinct_experts_of_every_call(
    stepped: SteppedScheduler, seen: Seen, execution: Execution, strategy: str, late_tokens: int
) -> None:
    execution.choice = StrategyChoice(strategy)
    before = bytes_now(stepped)
    running = [stepped.send(prompt(20, seed), 14, **ASK) for seed in (1, 2)]
    stepped.step(3)
    late = stepped.send(prompt(late_tokens, 3), 6, **ASK)
    stepped.finish(*running, late)
    stepped.step_until(stepped.scheduler.is_fully_idle)
    calls, size = seen.take(), expert_bytes(stepped)
    counted = {phase: after - before[phase] for phase, after in bytes_now(stepped).items()}
    assert sum(counted.values()) == union_bytes(calls, size)
    decode_calls = [
        call for call in calls if len(call[1]) <= 3
    ]  # every prompt has more rows than requests run
    assert counted["decode"] == union_bytes(decode_calls, size)
    assert (counted["hybrid"] > 0) == (strategy == "fused")
    shares = reported(stepped, [*running, late], "expert_bytes")
    for rid, amounts in shares.items():
        assert len(amounts) == len(stepped.reqs[rid].output_ids)
    total = sum(sum(amounts) for amounts in shares.values())
    if stepped.scheduler.enable_overlap:  # rows of requests that had just ended are nobody's
        assert 0.9 * sum(counted.values()) < total <= sum(counted.values())
    else:
        assert total == pytest.approx(sum(counted.values()), abs=len(calls))


def test_a_hybrid_layer_is_shared_as_the_experts_that_each_side_activated(
    stepped: SteppedScheduler, seen: Seen, execution: Execution
) -> None:
    execution.choice = StrategyChoice("fused")
    running = stepped.send(prompt(20, 1), 20, **ASK)
    stepped.step(4)
    late = stepped.send(prompt(200, 2), 1, **ASK)
    seen.take()
    stepped.finish(late)
    size, expected = expert_bytes(stepped), Counter[str]()
    for _, rows in seen.take():
        if len(rows) in (200, 201):
            prompt_set, decode_set = set().union(*rows[:200]), set().union(*rows[200:])
            part = len(prompt_set | decode_set) / (len(prompt_set) + len(decode_set))
            expected["late"] += part * len(prompt_set) * size
    [amount] = reported(stepped, [late], "expert_bytes")[late]
    assert amount == pytest.approx(expected["late"], abs=1)
    stepped.finish(running)


def test_a_request_that_did_not_ask_gets_no_report(stepped: SteppedScheduler) -> None:
    rid = stepped.send(prompt(30, 5), 3)
    stepped.finish(rid)
    assert stepped.reqs[rid].customized_info is None


def test_a_dropped_cohort_that_starts_again_pays_for_both_runs(stepped: SteppedScheduler) -> None:
    tokens = prompt(600, 2)

    def paid(pause: bool) -> float:
        running = stepped.send(prompt(20, 1), 30)
        stepped.step(3)
        late = stepped.send(tokens, 1, **ASK)
        stepped.step_until(lambda: stepped.next_group == 3)
        if pause:
            stepped.pause("retract")
            stepped.resume()
        stepped.finish(late, running)
        [amount] = reported(stepped, [late], "expert_bytes")[late]
        stepped.drain()
        return amount

    assert paid(pause=True) > paid(pause=False)


def test_a_retracted_request_reports_one_value_a_token(stepped: SteppedScheduler) -> None:
    rid = stepped.send(prompt(40, 3), 12, **ASK)
    stepped.step(5)
    stepped.pause("retract")
    stepped.resume()
    stepped.finish(rid)
    assert len(reported(stepped, [rid], "expert_bytes")[rid]) == 12


def test_energy_of_requests_adds_up_to_the_power_times_the_busy_time(stepped: SteppedScheduler) -> None:
    energy = stepped.scheduler.layered_observer._energy
    energy._meter.sample()
    tokens_before = dict(energy.state()["tokens"])
    rids = [stepped.send(prompt(50, seed), 6, **ASK) for seed in range(3)]
    start = np.array([event.time_s for event in stepped.events if hasattr(event, "duration_s")] or [0.0])
    stepped.finish(*rids)
    stepped.step_until(stepped.scheduler.is_fully_idle)
    steps = [event for event in stepped.events if hasattr(event, "duration_s")][len(start) - 1 :]
    busy_s = steps[-1].time_s - steps[0].start_s
    joules = sum(sum(amounts) for amounts in reported(stepped, rids, "energy_estimate_j").values())
    watts = stepped.scheduler.layered_observer._energy._meter.reading().devices[0].watts
    assert 0 < joules <= watts * busy_s * 1.01
    after = energy.state()["tokens"]
    assert {kind: after[kind] - tokens_before[kind] for kind in after} == {"prompt": 150, "output": 18}


def test_mixed_chunks_of_stock_scheduling_are_hybrid_in_every_layer(
    stepped: SteppedScheduler, seen: Seen
) -> None:
    scheduler, before = stepped.scheduler, bytes_now(stepped)
    scheduler.is_mixed_chunk = True
    assert stepped.change({"layered_prefill": 0, "layered_cohort_tokens": 128})
    try:
        running = stepped.send(prompt(10, 1), 12, **ASK)
        stepped.step(3)
        late = stepped.send(prompt(400, 2), 2, **ASK)
        stepped.finish(running, late)
        stepped.step_until(scheduler.is_fully_idle)
    finally:
        scheduler.is_mixed_chunk = False
        assert stepped.change({"layered_prefill": 1, "layered_cohort_tokens": 512})
    calls, size = seen.take(), expert_bytes(stepped)
    counted = {phase: after - before[phase] for phase, after in bytes_now(stepped).items()}
    assert sum(counted.values()) == union_bytes(calls, size)
    hybrid = [call for call in calls if len(call[1]) > 10]
    assert len(hybrid) == 4 * stepped.num_layers  # 400 prompt rows, at most 127 beside the one that decodes
    assert counted["hybrid"] == union_bytes(hybrid, size)
    amounts = reported(stepped, [running, late], "expert_bytes")
    assert sum(map(sum, amounts.values())) == pytest.approx(sum(counted.values()), rel=0.1)


@dataclass
class Ranks:
    pp_rank: int = 0
    pp_size: int = 1
    attn_tp_rank: int = 0


def test_a_model_whose_experts_cannot_be_found_is_refused() -> None:
    runner = SimpleNamespace(model=nn.Linear(2, 2), device="cpu", ps=Ranks())
    says = "--enable-expert-traffic-metrics: no layer"
    with as_stage(runner, 0, 1), pytest.raises(UnsupportedError, match=says):
        ExpertWatch.install(runner)
    with as_stage(runner, 0, 2):
        ExpertWatch.install(runner)
    assert runner.layered_expert_watch is None
