"""What is written for SGLang 0.5.23 does what was read there, on stand-ins for what it imports of SGLang."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

from release_stand_ins import loaded


class Aborted:
    """Stands for FINISH_ABORT."""


@pytest.fixture
def requests() -> Iterator[ModuleType]:
    with loaded(
        "requests",
        managers__schedule_batch=SimpleNamespace(FINISH_ABORT=Aborted, Req=Any, ScheduleBatch=Any),
        mem_cache__common=MagicMock(),
        session__streaming_session=MagicMock(),
    ) as module:
        yield module


class Cache:
    def checkpoint(self, req: Any, *, up_to: int) -> None:
        req.kept = up_to

    def claim_kv_row(self, req: Any) -> bool:
        return req.session is not None


def request(**values: Any) -> SimpleNamespace:
    return SimpleNamespace(**{"session": None, "finished_reason": None, "kept": 0} | values)


def test_nothing_is_kept_of_a_request_in_flight(requests: ModuleType) -> None:
    asked: list[Any] = []
    cache: Any = Cache()
    for _ in range(2):  # a second loop asks no second time
        requests.guard_keeping(cache, asked.append)
    plain, turn = request(), request(session=SimpleNamespace(streaming=True))
    cache.checkpoint(plain, up_to=7)
    assert plain.kept == 7 and asked == [plain]
    assert not cache.claim_kv_row(plain) and asked == [plain], "given back, and kept by nobody"
    assert cache.claim_kv_row(turn) and asked == [plain, turn]
    turn.finished_reason = Aborted()
    assert cache.claim_kv_row(turn) and len(asked) == 2, "an aborted turn is released by its session"


class KeepsTurns:
    """As SGLang's streaming sessions: a slot takes the last token of an answer for written."""

    def __init__(self) -> None:
        self.slots: dict[str, Any] = {}

    def try_cache_finished_req(self, req: Any) -> bool:
        if req.session is None:
            return False
        self.slots[req.session.session_id] = SimpleNamespace(kv=req.kv)
        req.kv.kv_committed_len = 30
        req.kv = None
        return True


def test_a_slot_counts_what_is_written_of_a_drafted_turn(requests: ModuleType) -> None:
    sessions: Any = KeepsTurns()
    for _ in range(2):
        requests.keep_what_is_written(None, sessions)
    turn = SimpleNamespace(session=SimpleNamespace(session_id="s"), kv=SimpleNamespace(kv_committed_len=29))
    assert sessions.try_cache_finished_req(turn)
    assert sessions.slots["s"].kv.kv_committed_len == 29
    plain = SimpleNamespace(session=None, kv=SimpleNamespace(kv_committed_len=29))
    assert not sessions.try_cache_finished_req(plain)


def test_a_request_has_its_places_in_its_kv(requests: ModuleType) -> None:
    kv = SimpleNamespace(req_pool_idx=3, cache_protected_len=4)
    req = SimpleNamespace(kv=kv, prefix_len=8, extend_end=24)
    got = [
        ask(req) for ask in (requests.pool_row, requests.cached_len, requests.prefix_len, requests.extend_end)
    ]
    assert got == [3, 4, 8, 24]


class Sessions:
    """As SGLang's: `slots`, of which a turn has borrowed one."""

    def __init__(self, **slot: Any) -> None:
        self.slots = {"s": SimpleNamespace(**slot)}
        self.tails: list[int] = []

    def borrowed_slot(self, req: Any) -> Any:
        return self.slots.get("s")

    def _free_tail(self, kv: Any, length: int) -> None:
        self.tails.append(length)

    def release_session(self, name: str) -> None:
        del self.slots[name]


def turn(**kv: Any) -> Any:
    last = SimpleNamespace(req=SimpleNamespace(output_ids=[1, 2, 3]))
    session = SimpleNamespace(session_id="s", committed_origin_len=20, req_nodes={"r": last})
    plain = {"holds_mamba": False, "max_evicted_seqlen": 0, "cache_protected_len": 0}
    record = SimpleNamespace(**plain | {"kv_allocated_len": 90} | kv)
    return request(session=session, kv=record, lock=None, detach_kv=MagicMock(), prefix_len=22)


def test_a_first_turn_that_waits_again_has_its_kv_and_its_lock_back(requests: ModuleType) -> None:
    req, sessions = turn(), Sessions(lock="lock")
    requests.release_retracted(req, SimpleNamespace(session=sessions))
    assert not sessions.slots and req.lock == "lock" and req.session.session_id == "s"
    requests.release_kv_cache.assert_called_once()


@pytest.mark.parametrize(
    ("kv", "tails"), [({}, [22]), ({"max_evicted_seqlen": 5}, []), ({"holds_mamba": True}, [])]
)
def test_a_later_turn_leaves_what_its_session_had(
    requests: ModuleType, kv: dict[str, Any], tails: list[int]
) -> None:
    """20 tokens of the last prompt and the first two of its answer; or nothing, where it has moved on."""
    req, sessions = turn(**kv), Sessions()
    requests.give_turn_back(sessions, req)
    assert sessions.tails == tails and bool(sessions.slots) is bool(tails)
    req.detach_kv.assert_called_once()


def test_a_slot_keeps_nothing_of_what_is_computed_in_it(requests: ModuleType) -> None:
    req = turn()
    slot = SimpleNamespace(kv=req.kv)
    assert requests.slot_end(slot, []) == 90 and requests.slot_end(slot, [turn(), req]) == 22


@pytest.fixture
def serving() -> Iterator[ModuleType]:
    with loaded(
        "serving",
        managers__schedule_batch=SimpleNamespace(ScheduleBatch=Any),
        managers__scheduler=SimpleNamespace(_make_abort_req=MagicMock(), Scheduler=MagicMock()),
        runtime_context=SimpleNamespace(get_parallel=lambda: SimpleNamespace(num_dp_ranks=4, pp_size=2)),
    ) as module:
        yield module


def launched(is_decode: bool, launch_ts: float | None) -> SimpleNamespace:
    mode = SimpleNamespace(is_decode=lambda: is_decode)
    return SimpleNamespace(forward_mode=mode, launch_ts=launch_ts, extend_num_tokens=50, after_idle_gap=None)


def test_a_prompt_counts_once_however_many_groups_it_has(serving: ModuleType) -> None:
    reporter = SimpleNamespace(record_scheduler_active=MagicMock())
    scheduler = SimpleNamespace(metrics_reporter=reporter, _sched_idled=True, processed_tokens_counter=0)
    prompt, decode = launched(False, None), launched(True, 1.0)
    serving.note_launch(scheduler, [prompt, decode])
    assert scheduler.processed_tokens_counter == 50 and prompt.after_idle_gap and not scheduler._sched_idled
    prompt.launch_ts = 2.0
    serving.note_launch(scheduler, [prompt, decode])
    assert scheduler.processed_tokens_counter == 50
    assert prompt.after_idle_gap and decode.after_idle_gap is False
    assert serving.num_replicas_of(scheduler) == 4


class Asked:
    """A scheduler that is asked for what a layered one cannot serve."""

    def __init__(self) -> None:
        self.beam_coordinator: Any = SimpleNamespace(retire_group=lambda req: f"retired {req}")
        self.done: list[str] = []

    def _add_request_to_queue(self, req: Any, is_retracted: bool = False) -> None:
        self.done.append(f"queued, {is_retracted}")

    def _reject_sampling_mask_request(self, req: Any, error_msg: str) -> None:
        self.done.append(error_msg.partition(" ")[0])


def test_what_no_layered_server_serves_is_answered_with_the_reason(serving: ModuleType) -> None:
    scheduler: Any = Asked()
    for _ in range(2):  # a second loop changes nothing
        serving.refuse_requests(scheduler)
    assert "Beam search" in scheduler.beam_coordinator.validate_and_init(None, None)
    assert scheduler.beam_coordinator.retire_group(1) == "retired 1"
    asked = SimpleNamespace(
        return_sampling_mask=False, origin_input_ids=[1], set_finish_with_abort=MagicMock()
    )
    scheduler._add_request_to_queue(asked, is_retracted=True)
    asked.set_finish_with_abort.assert_not_called()
    asked.origin_input_ids = []
    scheduler._add_request_to_queue(asked)  # it is queued: SGLang answers those that are aborted from there
    asked.set_finish_with_abort.assert_called_once()
    scheduler._add_request_to_queue(SimpleNamespace(return_sampling_mask=True))
    assert scheduler.done == ["queued, True", "queued, False", "return_sampling_mask"]
