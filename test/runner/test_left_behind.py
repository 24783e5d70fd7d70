"""An adapter is given back when the scheduler ends a request that the tokenizer process forgot."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from sglang.srt.managers.io_struct import AbortReq
from sglang.srt.managers.tokenizer_manager import TokenizerManager

from sglang_layered.upstream.lora import METHODS, STOCK, ForgetfulManager, give_back_what_is_left_behind
from sglang_layered.upstream.releases import serving

pytestmark = pytest.mark.skipif(
    serving.GIVES_ADAPTERS_BACK, reason="SGLang gives them back itself in this release"
)


class Manager(ForgetfulManager):
    """The real methods on a manager with one request, which hears of no output."""

    def __init__(self, *, is_dispatched: bool, **fields: Any) -> None:
        self.obj = SimpleNamespace(
            rid="r",
            is_single=True,
            **{"lora_path": "a", "lora_id": "id-a", "parallel_sample_num": 1} | fields,
        )
        state = SimpleNamespace(obj=self.obj, lifecycle_id=object(), dispatched=is_dispatched)
        self.lifecycles = {"r": state.lifecycle_id}
        self.rid_to_state = {"r": state}
        self.logical_rid_to_child_rids: dict[str, Any] = {}
        self.child_rid_to_logical_rid: dict[str, str] = {}
        self.given_back: list[str] = []
        self.sent: list[Any] = []
        self.lora_registry = SimpleNamespace(release=self._release)
        self.enable_lora = True

    async def _release(self, adapters: list[str]) -> None:
        self.given_back += adapters

    def _dispatch_to_scheduler(self, message: Any) -> None:
        self.sent.append(message)

    async def _resolve_lora_path(self, obj: Any) -> None:
        raise ValueError("no such adapter")


@pytest.fixture(autouse=True)
def deaf(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs reach nobody, as of a request that is forgotten."""

    async def output(manager: Any, output: Any) -> None:
        pass

    monkeypatch.setitem(STOCK, "_handle_batch_output", output)


def forgotten(manager: Manager) -> Manager:
    manager._discard_pending_req_states(manager.obj, manager.lifecycles)
    assert not manager.rid_to_state
    return manager


def batch(reason: Any) -> Any:
    return SimpleNamespace(rids=["other", "r"], finished_reasons=[{"type": "stop"}, reason])


def test_of_a_request_that_runs_it_is_given_back_once_with_the_last_output() -> None:
    async def play() -> list[list[str]]:
        manager = forgotten(Manager(is_dispatched=True))
        assert [message.rid for message in manager.sent] == ["r"]  # SGLang's abort
        seen = []
        for reason in (None, {"type": "abort"}, {"type": "abort"}):
            await manager._handle_batch_output(batch(reason))
            await asyncio.sleep(0)
            seen.append(list(manager.given_back))
        return seen

    assert asyncio.run(play()) == [[], ["id-a"], ["id-a"]]


def test_of_a_request_that_an_abort_ends_it_is_given_back_then() -> None:
    async def play() -> list[str]:
        manager = forgotten(Manager(is_dispatched=True))
        manager._handle_abort_req(AbortReq(rid="r"))
        await asyncio.sleep(0)
        return manager.given_back

    assert asyncio.run(play()) == ["id-a"]


def test_of_a_request_that_never_left_it_is_given_back_at_once() -> None:
    async def play() -> list[str]:
        manager = forgotten(Manager(is_dispatched=False))
        await asyncio.sleep(0)
        return manager.given_back

    assert asyncio.run(play()) == ["id-a"]


@pytest.mark.parametrize("fields", [{"lora_path": None}, {"lora_id": None}, {"parallel_sample_num": 2}])
def test_nothing_is_given_back_that_was_not_counted(fields: dict[str, Any]) -> None:
    async def play() -> list[str]:
        manager = forgotten(Manager(is_dispatched=False, **fields))
        await manager._handle_batch_output(batch({"type": "stop"}))
        await asyncio.sleep(0)
        return manager.given_back

    assert asyncio.run(play()) == []


def test_an_id_that_a_client_sends_is_not_taken_for_a_counted_one() -> None:
    async def play() -> list[str]:
        manager = Manager(is_dispatched=False)
        with pytest.raises(ValueError, match="no such adapter"):
            await manager._validate_and_resolve_lora(manager.obj)
        forgotten(manager)
        await asyncio.sleep(0)
        return manager.given_back

    assert asyncio.run(play()) == []


def test_the_methods_take_the_place_of_sglangs(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in METHODS:
        monkeypatch.setattr(TokenizerManager, name, vars(TokenizerManager)[name])  # put back at the end
    assert set(METHODS) == {
        "_validate_and_resolve_lora",
        "_discard_pending_req_states",
        "_handle_batch_output",
        "_handle_abort_req",
    }
    give_back_what_is_left_behind()
    assert all(vars(TokenizerManager)[name] is vars(ForgetfulManager)[name] for name in METHODS)


def test_another_way_to_forget_requests_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(STOCK, "_discard_pending_req_states")
    with pytest.raises(NotImplementedError, match="_discard_pending_req_states"):
        give_back_what_is_left_behind()
