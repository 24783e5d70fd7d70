"""Leaving layered mode on a running server: by an operator, and after a broken invariant."""

from __future__ import annotations

import asyncio
import logging
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import HTTPException
from sglang.srt.managers.io_struct import (
    SetInternalStateReq,
    SetInternalStateReqOutput,
    _msgpack_decoder,
    _msgpack_encoder,
)
from sglang.srt.managers.tokenizer_control_mixin import TokenizerControlMixin

from harness import SteppedScheduler
from prompts import alone, prompt
from release_differences import ways_to_keep
from sglang_layered import seams
from sglang_layered.core.events import CohortDropped, ModeChanged
from sglang_layered.core.plan import LayerGroupPlan
from sglang_layered.core.view import SchedulerView
from sglang_layered.errors import InvariantError
from sglang_layered.settings import raise_refused, refusal


@pytest.fixture
def restored(stepped: SteppedScheduler):
    """The scheduler with its settings as they were afterwards."""
    yield stepped
    limit = stepped.scheduler.server_args.chunked_prefill_size
    start = {"layered_prefill": 1, "layered_group_tokens": 64, "layered_num_groups": 0}
    assert stepped.change(start | {"layered_cohort_tokens": limit})
    stepped.loop._checker.is_strict = True


def groups_of_next_cohort(stepped: SteppedScheduler, seed: int, num_tokens: int = 300) -> int:
    stepped.send(prompt(num_tokens, seed), 3)
    stepped.step()
    return 0 if stepped.loop.inflight is None else stepped.loop.inflight.cohort.plan.num_groups


def test_settings_take_effect_at_the_next_cohort(restored: SteppedScheduler) -> None:
    restored.send(prompt(10, 1), 80)
    restored.step(2)
    assert groups_of_next_cohort(restored, 2) == 5
    assert restored.change({"layered_group_tokens": 100})
    assert restored.loop.inflight.cohort.plan.num_groups == 5
    restored.step_until(lambda: restored.next_group is None)
    assert groups_of_next_cohort(restored, 3) == 3
    restored.step_until(lambda: restored.next_group is None)
    assert restored.change({"layered_num_groups": 8})
    assert groups_of_next_cohort(restored, 4) == 8


def test_cohort_limit_cuts_prompts_into_smaller_chunks(restored: SteppedScheduler) -> None:
    tokens = prompt(300, 5)
    expected = alone(restored, tokens, 5)
    restored.send(prompt(10, 6), 80)
    restored.step(2)
    assert restored.change({"layered_cohort_tokens": 128})
    rid = restored.send(tokens, 5)
    restored.step()
    assert restored.loop.inflight.num_prompt_tokens == 128
    assert restored.finish(rid) == [expected]


def test_chunked_and_back_with_a_cohort_in_flight(restored: SteppedScheduler) -> None:
    tokens = [prompt(300, 7), prompt(310, 8), prompt(320, 9)]
    expected = [alone(restored, one, 5) for one in tokens]
    restored.send(prompt(10, 10), 80)
    restored.step(2)
    first = restored.send(tokens[0], 5)
    restored.step(2)
    assert restored.change({"layered_prefill": 0})
    assert restored.next_group == 2
    second = restored.send(tokens[1], 5)
    restored.step_until(lambda: restored.reqs[second].output_ids)
    assert restored.loop.inflight is None
    assert restored.change({"layered_prefill": 1})
    third = restored.send(tokens[2], 5)
    restored.step_until(lambda: restored.next_group is not None)
    assert restored.finish(first, second, third) == expected
    modes = [(event.mode, event.reason) for event in restored.events if isinstance(event, ModeChanged)]
    assert modes[-2:] == [("chunked", "operator"), ("layered", "operator")]


@pytest.mark.parametrize(
    ("wanted", "complaint"),
    [
        ({"layered_prefill": 2}, "layered_prefill 2"),
        ({"layered_group_tokens": 0}, "--layered-group-tokens 0"),
        ({"layered_group_tokens": 1.5}, "layered_group_tokens 1.5: give a whole number"),
        ({"layered_num_groups": float("nan")}, "layered_num_groups nan: give a whole number"),
        ({"layered_cohort_tokens": float("inf")}, "layered_cohort_tokens inf: give a whole number"),
        ({"layered_tbt_ms": 20}, "layered_tbt_ms 20: --layered-policy token-target keeps no limit"),
        ({"layered_num_groups": 9}, "8 layers"),
        ({"layered_cohort_tokens": 4096}, "layered_cohort_tokens 4096: give 1 to 512"),
        ({"layered_prefill": 0, "layered_num_groups": -1}, "layered_num_groups -1"),
        ({"layered_prefill": 0, "pp_max_micro_batch_size": 8}, "pp_max_micro_batch_size"),
    ],
)
def test_bad_settings_change_nothing(
    restored: SteppedScheduler, caplog: pytest.LogCaptureFixture, wanted: dict, complaint: str
) -> None:
    before = restored.loop.controls.config
    answer = restored.scheduler.set_internal_state(SetInternalStateReq(server_args=wanted))
    assert not answer.updated
    assert restored.loop.controls.config == before
    assert complaint in caplog.text
    with pytest.raises(HTTPException) as refused:
        raise_refused([answer])
    assert refused.value.status_code == 400
    assert complaint in refused.value.detail and refused.value.detail.endswith("nothing changed")


def test_a_server_without_layered_mode_says_so() -> None:
    chunked = SimpleNamespace()
    request = SetInternalStateReq(server_args={"layered_prefill": 1})
    assert seams.owns_settings(chunked, request)
    answer = seams.change_settings(chunked, request)
    with pytest.raises(
        HTTPException, match="layered_prefill: this server was started without --prefill-mode"
    ):
        seams.refuse_settings([answer])


def test_replicas_that_disagree_are_told_of_and_sglangs_own_refusals_are_sglangs() -> None:
    changed, silent = SetInternalStateReqOutput(updated=True), SetInternalStateReqOutput(updated=False)
    raise_refused([changed, changed])
    raise_refused([silent])
    with pytest.raises(HTTPException, match="no; 1 of 3 replicas changed"):
        raise_refused([refusal("no"), changed, refusal("no")])


def test_the_endpoint_hears_the_reason_over_the_wire() -> None:
    """SGLang packs the answer for its way between processes; the reason must still be in it."""

    async def communicator(request: SetInternalStateReq) -> list[SetInternalStateReqOutput]:
        return [_msgpack_decoder.decode(_msgpack_encoder.encode(refusal("give a whole number")))]

    manager = SimpleNamespace(
        auto_create_handle_loop=lambda: None, set_internal_state_communicator=communicator
    )
    request = SetInternalStateReq(server_args={"layered_prefill": 1})
    with pytest.raises(HTTPException, match="give a whole number"):
        asyncio.run(TokenizerControlMixin.set_internal_state(manager, request))


def test_settings_of_sglang_go_to_sglang(restored: SteppedScheduler) -> None:
    usual = restored.scheduler.max_running_requests
    assert restored.change({"pp_max_micro_batch_size": usual - 1})
    assert restored.change({"pp_max_micro_batch_size": usual})
    assert not restored.change({"unknown_setting": 1})


def keep_too_early(stepped: SteppedScheduler, victim: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the next step something hands the KV of a request in flight to the prefix cache."""
    scheduler = stepped.scheduler

    def update(running: Any) -> None:
        monkeypatch.undo()
        ways_to_keep(scheduler.tree_cache, stepped.reqs[victim])[0]()

    monkeypatch.setattr(scheduler, "update_running_batch", update)


@pytest.mark.parametrize("group", [1, 4])
def test_a_broken_invariant_drops_the_cohort_and_goes_on_in_chunks(
    restored: SteppedScheduler, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, group: int
) -> None:
    tokens = [prompt(20, 11), prompt(300, 12), prompt(900, 13)]
    expected = [alone(restored, one, 15) for one in tokens]
    restored.loop._checker.is_strict = False
    running = restored.send(tokens[0], 15)
    restored.step(2)
    victim = restored.send(tokens[1], 15)
    restored.step_until(lambda: restored.next_group == group)
    keep_too_early(restored, victim, monkeypatch)
    with caplog.at_level(logging.ERROR):
        restored.step()
    assert restored.next_group is None
    assert "Layered prefill is off: broken invariant" in caplog.text
    dropped = [event for event in restored.events if isinstance(event, CohortDropped)]
    assert (dropped[-1].reason, dropped[-1].group_index) == ("broken invariant", group)
    later = restored.send(tokens[2], 15)
    assert restored.finish(running, victim, later) == expected
    assert not restored.loop.controls.is_layered


class Refuses:
    def plan(self, view: SchedulerView) -> LayerGroupPlan:
        raise ValueError("no plan today")


class ForgetsLayers:
    def plan(self, view: SchedulerView) -> LayerGroupPlan:
        return LayerGroupPlan.whole(view.num_layers - 1)


@pytest.mark.parametrize(
    ("policy", "said"), [(Refuses(), "no plan today"), (ForgetsLayers(), "for 8 layers")]
)
def test_a_failing_policy_sends_prompts_in_chunks(
    restored: SteppedScheduler, caplog: pytest.LogCaptureFixture, policy: object, said: str
) -> None:
    tokens = prompt(300, 16)
    expected = alone(restored, tokens, 5)
    restored.loop._checker.is_strict = False
    controls = restored.loop.controls
    controls.put_in_force(controls.config, policy, "test")
    restored.send(prompt(10, 17), 60)
    restored.step(2)
    assert restored.finish(restored.send(tokens, 5)) == [expected]
    assert "Layered prefill is off: policy failed" in caplog.text
    assert said in caplog.text
    assert not restored.loop.controls.is_layered


def test_strict_stops_the_server_instead(restored: SteppedScheduler, monkeypatch: pytest.MonkeyPatch) -> None:
    restored.send(prompt(20, 14), 15)
    restored.step(2)
    victim = restored.send(prompt(300, 15), 4)
    restored.step(2)
    keep_too_early(restored, victim, monkeypatch)
    with pytest.raises(InvariantError, match=f"KV of request {victim} would be kept"):
        restored.step()
