"""Load reports: every request that was sent counts, as running or as waiting, until it is finished."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from sglang.srt.managers.data_parallel_controller import DPBudget, LoadBalanceMethod
from sglang.srt.managers.schedule_batch import ScheduleBatch
from sglang.srt.observability.metrics_collector import QueueCount

from harness import SteppedScheduler
from prompts import prompt
from release_differences import in_row
from sglang_layered.core.cohort import Cohort
from sglang_layered.core.plan import LayerGroupPlan
from sglang_layered.scheduler.batch import InFlightCohort
from sglang_layered.scheduler.loads import count_cohorts, not_merged_of_stages
from sglang_layered.scheduler.tick import PipelineTick


def test_a_prompt_counts_as_running_from_its_admission_on(stepped: SteppedScheduler) -> None:
    stepped.send(prompt(10, 1), 60)
    stepped.step(2)
    rids = [stepped.send(prompt(length, length), 30) for length in (200, 150)]
    late = stepped.send(prompt(90, 3), 30)
    stepped.step_until(lambda: stepped.next_group is not None)
    assert len(stepped.loop.inflight.reqs) == 3
    late = stepped.send(prompt(80, 4), 30)
    seen = []
    while not any(stepped.reqs[rid].finished() for rid in (*rids, late)):
        loads = stepped.scheduler.load_inquirer.get_loads()
        seen.append((loads.num_running_reqs, loads.num_waiting_reqs))
        stepped.step()
    assert seen[0] == (4, 1)
    assert seen[-1] == (5, 0)
    assert {sum(counts) for counts in seen} == {5}


def test_dispatch_by_load_sees_a_cohort(stepped: SteppedScheduler) -> None:
    stepped.send(prompt(10, 1), 60)
    stepped.step(2)
    for length in (200, 150):
        stepped.send(prompt(length, length), 2)
    stepped.step_until(lambda: stepped.next_group is not None)
    ours = stepped.scheduler.load_inquirer.get_loads()
    other = SimpleNamespace(
        dp_rank=1, timestamp=1.0, num_running_reqs=2, num_waiting_reqs=0, num_total_tokens=9
    )
    budget = DPBudget(2)
    budget.update_budget([ours, other])
    assert budget.dispatch(LoadBalanceMethod.TOTAL_REQUESTS) == 1


def test_who_reads_the_load_is_a_step_behind_at_most(
    stepped: SteppedScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler, seen = stepped.scheduler, [0]
    writer = SimpleNamespace(
        publish_counter=0, publish_interval=15, write=lambda load: seen.append(load.num_running_reqs)
    )
    monkeypatch.setattr(scheduler, "load_snapshot_writer", writer)
    stepped.drain()
    stepped.send(prompt(10, 1), 60)
    stepped.step(3)
    assert seen[-1] == 1
    stepped.send(prompt(300, 2), 4)
    stepped.step_until(lambda: stepped.next_group is not None)
    stepped.step(2)
    assert stepped.next_group is not None and seen[-1] == 2


def test_a_dropped_cohort_waits_again(stepped: SteppedScheduler) -> None:
    stepped.send(prompt(10, 1), 60)
    stepped.step(2)
    stepped.send(prompt(300, 2), 4)
    stepped.step_until(lambda: stepped.next_group == 2)
    stepped.pause("retract")
    loads = stepped.scheduler.load_inquirer.get_loads()
    assert (loads.num_running_reqs, loads.num_waiting_reqs) == (0, 2)
    stepped.resume()


def test_the_gauge_of_running_requests_counts_a_cohort(
    stepped: SteppedScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    reporter = stepped.scheduler.metrics_reporter
    monkeypatch.setattr(reporter, "decode_log_interval", 1)
    stepped.send(prompt(10, 1), 60)
    stepped.step(3)
    assert reporter.stats.num_running_reqs.total == 1
    stepped.send(prompt(300, 2), 20)
    stepped.step_until(lambda: stepped.next_group == 2)
    assert reporter.stats.num_running_reqs.total == 2
    stepped.step_until(lambda: stepped.next_group is None)
    stepped.step(3)
    assert reporter.stats.num_running_reqs.total == 2
    stepped.drain()
    assert reporter.stats.num_running_reqs.total == 0


class Collector:
    """SGLang's collector, as far as it is asked here."""

    def __init__(self) -> None:
        self.logged: list[QueueCount] = []

    def log_stats(self, stats: Any) -> None:
        self.logged.append(stats.num_running_reqs)


def test_the_gauge_counts_by_priority_and_a_count_that_is_logged_again_once(
    stepped: SteppedScheduler,
) -> None:
    urgent, usual = (
        SimpleNamespace(priority=priority, **in_row(1), finished=lambda: False) for priority in (5, 0)
    )
    last = SimpleNamespace(forward_mode=SimpleNamespace(is_extend=lambda: True), reqs=[urgent, usual])
    collector = Collector()
    count_cohorts(
        SimpleNamespace(
            ps=SimpleNamespace(pp_size=1),
            running_batch=SimpleNamespace(reqs=[]),
            last_batch=last,
            load_inquirer=stepped.scheduler.load_inquirer,
            metrics_reporter=SimpleNamespace(current_scheduler_metrics_enabled=True),
            metrics_collector=collector,
            enable_priority_scheduling=True,
        )
    )
    stats = SimpleNamespace(num_running_reqs=QueueCount(3, {0: 2, 1: 1}))
    collector.log_stats(stats)
    collector.log_stats(stats)
    assert collector.logged == [QueueCount(5, {0: 3, 1: 1, 5: 1})] * 2


def request(name: str, *, slot: int | None = 1, finished: bool = False) -> Any:
    return SimpleNamespace(rid=name, **in_row(slot), finished=lambda: finished, to_finish=None)


def test_stages_count_prompts_of_all_ticks_that_are_in_no_micro_batch() -> None:
    first, merged = request("first"), request("merged")
    gone, done = request("requeued", slot=None), request("done", finished=True)
    cohort = Cohort(LayerGroupPlan.even(8, 2), ("first", "merged", "requeued", "done"))
    inflight = InFlightCohort(cohort, SimpleNamespace(reqs=[first, merged, gone, done]))
    ticks = [PipelineTick(None, (), (inflight,)) for _ in range(2)]
    running = [ScheduleBatch(reqs=[merged], batch_is_full=False), ScheduleBatch(reqs=[], batch_is_full=False)]
    scheduler = SimpleNamespace(mbs=[*ticks, None], running_mbs=running)
    assert [req.rid for req in not_merged_of_stages(scheduler)] == ["first"]
