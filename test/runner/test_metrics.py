"""What the layered loop writes into the registry that `/metrics` serves."""

from __future__ import annotations

from prometheus_client import REGISTRY

from harness import SteppedScheduler
from prompts import prompt
from sglang_layered.core.events import DropReason
from sglang_layered.metrics.traffic import PHASES


def sample(stepped: SteppedScheduler, name: str, **labels: str) -> float | None:
    base = {key: str(value) for key, value in stepped.scheduler.metrics_collector.labels.items()}
    return REGISTRY.get_sample_value(f"sglang:{name}", {**base, **labels})


def test_metrics_follow_steps_cohorts_and_groups(stepped: SteppedScheduler) -> None:
    kinds = ("prefill", "decode", "layered")
    before = {kind: sample(stepped, "layered_steps_total", kind=kind) for kind in kinds}
    cohorts = sample(stepped, "layered_groups_per_cohort_sum") or 0
    running = stepped.send(prompt(20, 1), 40)
    stepped.step(3)
    late = stepped.send(prompt(300, 2), 2)
    stepped.step_until(lambda: stepped.next_group == 3)
    overlapped = stepped.scheduler.enable_overlap
    assert sample(stepped, "layered_cohorts_in_flight") == 1
    assert sample(stepped, "layered_cohort_groups", state="done") == 3
    assert sample(stepped, "layered_cohort_groups", state="left") == 2
    assert sample(stepped, "layered_kv_slots", state="partial") == 300
    hidden = stepped.scheduler.model_config.hidden_size
    assert sample(stepped, "layered_parked_bytes") == 2 * 300 * hidden * 4
    stepped.finish(running, late)
    stepped.step_until(stepped.scheduler.is_fully_idle)
    assert sample(stepped, "layered_cohorts_in_flight") == 0
    assert sample(stepped, "layered_kv_slots", state="partial") == 0
    assert sample(stepped, "layered_groups_per_cohort_sum") - cohorts == 5
    assert sample(stepped, "layered_steps_total", kind="layered") - before["layered"] == 5
    assert sample(stepped, "layered_steps_total", kind="prefill") - before["prefill"] == 1
    assert sample(stepped, "layered_steps_total", kind="decode") - before["decode"] >= 30
    assert overlapped is not stepped.scheduler.server_args.disable_overlap_schedule
    used = stepped.scheduler.max_total_num_tokens
    assert 0 <= sample(stepped, "layered_kv_slots", state="filled") <= used


def test_requests_that_leave_a_cohort_are_counted(stepped: SteppedScheduler) -> None:
    def dropped() -> list[float | None]:
        return [sample(stepped, "layered_dropped_cohorts_total", reason=reason) for reason in DropReason]

    before, dropped_before = sample(stepped, "layered_left_requests_total"), dropped()
    running = stepped.send(prompt(20, 1), 40)
    stepped.step(3)
    stays, leaves = stepped.send(prompt(300, 2), 2), stepped.send(prompt(40, 3), 2)
    stepped.step_until(lambda: stepped.next_group == 2)
    stepped.abort(leaves)
    stepped.finish(running, stays)
    stepped.step_until(stepped.scheduler.is_fully_idle)
    assert sample(stepped, "layered_left_requests_total") == before + 1
    assert dropped() == dropped_before, "the cohort went on"


def test_coverage_and_bytes_are_in_the_registry(stepped: SteppedScheduler) -> None:
    stepped.finish(stepped.send(prompt(64, 9), 4))
    stepped.step_until(stepped.scheduler.is_fully_idle)
    counted = stepped.scheduler.layered_observer.state()["expert_traffic"]["load_bytes"]
    for phase in PHASES:
        assert sample(stepped, "expert_load_bytes_total", phase=phase) == counted[phase]
    assert sample(stepped, "expert_coverage_ratio_sum", phase="prompt") > 0
    assert sample(stepped, "expert_tokens_per_active_expert_sum", phase="decode") > 0


def test_requests_are_counted_once_against_the_limits(stepped: SteppedScheduler) -> None:
    def met(slo: str) -> float:
        return sample(stepped, "slo_requests_total", slo=slo, met="true") or 0

    before = {slo: met(slo) for slo in ("ttft", "tbt", "both")}
    rids = [stepped.send(prompt(20, seed), 3) for seed in range(4)]
    aborted = stepped.send(prompt(20, 9), 50)
    stepped.step(2)
    stepped.abort(aborted)
    stepped.finish(*rids)
    stepped.step_until(stepped.scheduler.is_fully_idle)
    assert {slo: met(slo) - before[slo] for slo in before} == {"ttft": 4, "tbt": 4, "both": 4}
    assert sample(stepped, "slo_requests_total", slo="both", met="false") == 0
    assert sample(stepped, "slo_limit_seconds", slo="tbt") == 1000.0
