"""The layered loop step by step, on SGLang's real scheduler: what each step does to whom."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from sglang.srt.environ import envs

from harness import SteppedScheduler
from prompts import alone, prompt
from sglang_layered.core.events import CohortDropped, StepDone


@contextmanager
def rows_per_layer(stepped: SteppedScheduler) -> Iterator[dict[int, list[int]]]:
    """Count the rows that enter each decoder layer, forward by forward."""
    seen: dict[int, list[int]] = {index: [] for index in range(stepped.num_layers)}
    layers = stepped.scheduler.tp_worker.model_runner.model.model.layers

    def watch(index: int) -> Callable[..., None]:
        return lambda module, args: seen[index].append(args[0].shape[-1])

    handles = [layer.register_forward_pre_hook(watch(index)) for index, layer in enumerate(layers)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def test_prompt_meets_each_layer_once_and_decode_meets_all_every_step(stepped: SteppedScheduler) -> None:
    running = [stepped.send(prompt(12, seed), 60) for seed in (1, 2)]
    stepped.step(2)
    stepped.send(prompt(300, 3), 4)
    with rows_per_layer(stepped) as seen:
        stepped.step()
        num_groups = stepped.loop.inflight.cohort.plan.num_groups
        plan = stepped.loop.inflight.cohort.plan
        stepped.step_until(lambda: stepped.next_group is None)
    assert num_groups == 5
    assert [group.num_layers for group in plan.groups] == [2, 2, 2, 1, 1]
    for rows in seen.values():
        assert sorted(rows) == [len(running)] * (num_groups - 1) + [300 + len(running)]


def test_every_running_request_gets_one_token_a_step(stepped: SteppedScheduler) -> None:
    running = [stepped.send(prompt(10 + seed, seed), 60) for seed in range(3)]
    stepped.step(2)
    stepped.send(prompt(500, 9), 4)
    stepped.step()
    assert stepped.next_group == 1
    while stepped.next_group is not None:
        before = [len(stepped.reqs[rid].output_ids) for rid in running]
        stepped.step()
        assert [len(stepped.reqs[rid].output_ids) for rid in running] == [count + 1 for count in before]


@pytest.mark.parametrize("num_tokens", [1, 5, 64, 65, 511, 512, 513, 1300])
def test_tokens_do_not_depend_on_company(stepped: SteppedScheduler, num_tokens: int) -> None:
    tokens = prompt(num_tokens, num_tokens)
    expected = alone(stepped, tokens, 12)
    company = [stepped.send(prompt(20, 100 + seed), 40) for seed in range(3)]
    stepped.step(3)
    [output] = stepped.finish(stepped.send(tokens, 12))
    assert output == expected
    stepped.finish(*company)


def test_no_prefix_hit_on_a_cohort_in_flight(stepped: SteppedScheduler) -> None:
    tokens = prompt(400, 21)
    stepped.send(prompt(10, 22), 60)
    stepped.step(2)
    first = stepped.send(tokens, 3)
    stepped.step(2)
    assert stepped.next_group is not None
    assert stepped.num_cached < 100
    second = stepped.send(tokens, 3)
    stepped.step_until(lambda: stepped.reqs[first].output_ids)
    third = stepped.send(tokens, 3)
    outputs = stepped.finish(first, second, third)
    assert outputs[0] == outputs[1] == outputs[2]
    assert stepped.reqs[first].cached_tokens == 0
    assert stepped.reqs[second].cached_tokens in (0, 399)
    assert stepped.reqs[third].cached_tokens == 399


def test_shared_prefix_computes_only_the_rest(stepped: SteppedScheduler) -> None:
    shared = prompt(200, 31)
    stepped.finish(stepped.send(shared + prompt(5, 32), 2))
    stepped.send(prompt(10, 33), 60)
    stepped.step(2)
    rid = stepped.send(shared + prompt(90, 34), 2)
    stepped.step()
    assert stepped.loop.inflight.num_prompt_tokens == 90
    [output] = stepped.finish(rid)
    stepped.drain()
    assert output == alone(stepped, shared + prompt(90, 34), 2)


def test_long_prompt_goes_chunk_by_chunk_through_all_groups(stepped: SteppedScheduler) -> None:
    tokens = prompt(1200, 41)
    expected = alone(stepped, tokens, 6)
    stepped.send(prompt(10, 42), 80)
    stepped.step(2)
    rid = stepped.send(tokens, 6)
    chunks: list[int] = []
    while not stepped.reqs[rid].output_ids:
        stepped.step()
        inflight = stepped.loop.inflight
        if inflight is not None and inflight.cohort.next_group == 1:
            chunks.append(inflight.num_prompt_tokens)
    assert chunks == [512, 512, 176]
    assert stepped.finish(rid) == [expected]


@pytest.mark.parametrize("group", range(1, 5))
def test_abort_at_every_group_leaves_the_others_alone(stepped: SteppedScheduler, group: int) -> None:
    beside, dropped = prompt(15, 51), prompt(300, 52)
    expected = [alone(stepped, beside, 25), alone(stepped, dropped, 4)]
    survivor = stepped.send(beside, 25)
    stepped.step(2)
    victim = stepped.send(dropped, 4)
    stepped.step_until(lambda: stepped.next_group == group)
    stepped.abort(victim)
    stepped.step()
    assert stepped.next_group is None
    [event] = [event for event in stepped.events if isinstance(event, CohortDropped)]
    assert (event.reason, event.group_index, event.request_ids) == ("aborted", group, (victim,))
    assert [message.rid for message in stepped.tokenizer.sent] == [victim]
    assert stepped.tokenizer.sent[0].finished_reason["type"] == "abort"
    again = stepped.send(dropped, 4)
    assert stepped.finish(survivor, again) == expected
    assert stepped.reqs[again].cached_tokens == 0


def test_abort_of_one_in_a_cohort_keeps_the_other(stepped: SteppedScheduler) -> None:
    kept = prompt(200, 61)
    expected = alone(stepped, kept, 8)
    stepped.send(prompt(10, 62), 60)
    stepped.step(2)
    victim, survivor = stepped.send(prompt(150, 63), 8), stepped.send(kept, 8)
    stepped.step(2)
    assert len(stepped.loop.inflight.reqs) == 2
    stepped.abort(victim)
    assert stepped.finish(survivor) == [expected]
    assert stepped.reqs[victim].finished()
    assert len(stepped.reqs[victim].output_ids) <= 1


def test_abort_of_a_middle_chunk(stepped: SteppedScheduler) -> None:
    beside = prompt(15, 71)
    expected = alone(stepped, beside, 30)
    survivor = stepped.send(beside, 30)
    stepped.step(2)
    victim = stepped.send(prompt(1200, 72), 4)
    stepped.step_until(lambda: stepped.next_group == 3)
    assert stepped.scheduler.chunked_req is stepped.reqs[victim]
    stepped.abort(victim)
    stepped.step(2)
    assert stepped.scheduler.chunked_req is None
    assert stepped.finish(survivor) == [expected]


@pytest.mark.parametrize("mode", ["retract", "in_place"])
@pytest.mark.parametrize(("group", "num_tokens"), [(1, 300), (4, 300), (3, 1200)])
def test_pause_at_a_group_and_go_on(
    stepped: SteppedScheduler, mode: str, group: int, num_tokens: int
) -> None:
    prompts = [prompt(15, 81), prompt(num_tokens, 82)]
    expected = [alone(stepped, tokens, 12) for tokens in prompts]
    first = stepped.send(prompts[0], 12)
    stepped.step(2)
    second = stepped.send(prompts[1], 12)
    stepped.step_until(lambda: stepped.next_group == group)
    stepped.pause(mode)
    assert (stepped.next_group is None) == (mode == "retract")
    stepped.step(3)
    stepped.resume()
    assert stepped.finish(first, second) == expected


def test_kv_pressure_retracts_a_decode_and_the_cohort_goes_on(stepped: SteppedScheduler) -> None:
    prompts = [prompt(30, 91), prompt(31, 92), prompt(300, 93)]
    expected = [alone(stepped, tokens, 20) for tokens in prompts]
    running = [stepped.send(tokens, 20) for tokens in prompts[:2]]
    stepped.step(3)
    late = stepped.send(prompts[2], 20)
    stepped.step(2)
    with stepped.full_pool():
        stepped.step()
        assert stepped.next_group == 3
        assert [stepped.reqs[rid].is_retracted for rid in running].count(True) == 1
    assert stepped.finish(*running, late) == expected


def test_cohort_is_requeued_before_the_last_running_request_is_aborted(stepped: SteppedScheduler) -> None:
    beside, late = prompt(30, 95), prompt(300, 96)
    expected = [alone(stepped, beside, 40), alone(stepped, late, 4)]
    survivor = stepped.send(beside, 40)
    stepped.step(3)
    second = stepped.send(late, 4)
    stepped.step(2)
    assert stepped.next_group == 2
    with stepped.full_pool():
        stepped.step()
        assert stepped.next_group is None
        assert stepped.reqs[second].is_retracted
    assert stepped.finish(survivor, second) == expected


@pytest.mark.parametrize("mode", ["retract", "in_place"])
@pytest.mark.parametrize("steps_after", [0, 1])
def test_pause_right_after_the_last_group(stepped: SteppedScheduler, mode: str, steps_after: int) -> None:
    prompts = [prompt(15, 84), prompt(300, 85)]
    expected = [alone(stepped, tokens, 12) for tokens in prompts]
    first = stepped.send(prompts[0], 12)
    stepped.step(2)
    second = stepped.send(prompts[1], 12)
    stepped.step_until(lambda: stepped.next_group == 4)
    stepped.step(1 + steps_after)
    stepped.pause(mode)
    stepped.resume()
    assert stepped.finish(first, second) == expected


def test_a_prompt_runs_whole_when_nothing_decodes(stepped: SteppedScheduler) -> None:
    rid = stepped.send(prompt(400, 86), 3)
    stepped.finish(rid)
    kinds = [event.kind for event in stepped.events if isinstance(event, StepDone)]
    assert kinds == ["prefill", "decode", "decode"]


def test_the_rest_runs_at_once_when_the_last_decode_ends(stepped: SteppedScheduler) -> None:
    tokens = prompt(512, 87)
    expected = alone(stepped, tokens, 5)
    running = stepped.send(prompt(10, 88), 5)
    stepped.step(2)
    rid = stepped.send(tokens, 5)
    with rows_per_layer(stepped) as seen:
        assert stepped.finish(running, rid)[1] == expected
    assert all(sorted(rows)[-1] >= 512 and sum(row >= 512 for row in rows) == 1 for rows in seen.values())
    groups = [event.group for event in stepped.events if isinstance(event, StepDone) and event.group]
    assert [group.num_layers for group in groups[:-1]] == [1] * (len(groups) - 1)
    assert groups[-1].num_layers == stepped.num_layers - len(groups) + 1 > 1


@pytest.mark.parametrize("overdue", ["cohort", "all", "waiting"])
def test_timeouts_while_a_cohort_is_in_flight(stepped: SteppedScheduler, overdue: str) -> None:
    beside = prompt(15, 89)
    expected = alone(stepped, beside, 25)
    first = stepped.send(beside, 25)
    stepped.step(2)
    second = stepped.send(prompt(300, 90), 4)
    stepped.step(2)
    third = stepped.send(prompt(20, 91), 4)
    entries = {"cohort": [second], "all": [first, second], "waiting": [third]}[overdue]
    for rid in entries:
        times = stepped.reqs[rid].time_stats
        times.forward_entry_time = times.wait_queue_entry_time = time.perf_counter() - 1000
    name = "WAITING" if overdue == "waiting" else "RUNNING"
    with getattr(envs, f"SGLANG_REQ_{name}_TIMEOUT").override(500):
        stepped.step_late()
    assert (stepped.next_group is None) == (overdue != "waiting")
    stepped.step_until(stepped.scheduler.is_fully_idle)
    gone = {message.rid for message in stepped.tokenizer.sent}
    assert second in gone if overdue != "waiting" else gone == {third}
    if overdue != "all":
        assert list(stepped.reqs[first].output_ids) == expected


def test_flush_is_refused_while_a_cohort_is_in_flight(stepped: SteppedScheduler) -> None:
    stepped.send(prompt(10, 101), 30)
    stepped.step(2)
    rid = stepped.send(prompt(300, 102), 2)
    stepped.step()
    assert not stepped.scheduler.flush_cache(empty_cache=False)
    stepped.finish(rid)


def test_input_logprobs_do_not_depend_on_groups(stepped: SteppedScheduler) -> None:
    tokens = prompt(300, 111)
    wanted = {"return_logprob": True, "logprob_start_len": 0}
    first = stepped.send(tokens, 3, **wanted)
    stepped.finish(first)
    whole = list(stepped.reqs[first].logprob.input_token_logprobs_val)
    stepped.drain()
    stepped.send(prompt(10, 112), 60)
    stepped.step(2)
    second = stepped.send(tokens, 3, **wanted)
    stepped.finish(second)
    split = list(stepped.reqs[second].logprob.input_token_logprobs_val)
    assert len(split) == 300
    torch.testing.assert_close(torch.tensor(split[1:]), torch.tensor(whole[1:]), atol=1e-4, rtol=0)
