"""SGLang's own endpoint answers a refused setting with 400 and the reason: its real app, no server."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import httpx
import pytest
from sglang.srt.entrypoints import http_server
from sglang.srt.managers.io_struct import SetInternalStateReq, SetInternalStateReqOutput
from sglang.srt.managers.tokenizer_control_mixin import TokenizerControlMixin

from sglang_layered.settings import refusal

pytestmark = pytest.mark.filterwarnings(
    "ignore:ORJSONResponse is deprecated"
)  # SGLang's errors are made of it


class Tokenizer:
    """SGLang's half in the HTTP server, with a scheduler that answers what the test says."""

    def __init__(self, answer: SetInternalStateReqOutput) -> None:
        self._answer = answer

    def auto_create_handle_loop(self) -> None:
        pass

    async def set_internal_state_communicator(
        self, request: SetInternalStateReq
    ) -> list[SetInternalStateReqOutput]:
        return [self._answer]

    set_internal_state = TokenizerControlMixin.set_internal_state


def reply_to(answer: SetInternalStateReqOutput, monkeypatch: pytest.MonkeyPatch) -> httpx.Response:
    state = SimpleNamespace(tokenizer_manager=Tokenizer(answer))
    monkeypatch.setattr(http_server, "_global_state", state)

    async def post() -> httpx.Response:
        transport = httpx.ASGITransport(http_server.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            return await client.post("/set_internal_state", json={"server_args": {"layered_prefill": 7}})

    return asyncio.run(post())


def test_a_refused_setting_is_400_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    reply = reply_to(refusal("layered_prefill 7: give 1 for layered"), monkeypatch)
    assert reply.status_code == 400
    assert reply.json()["message"] == "layered_prefill 7: give 1 for layered; nothing changed"


@pytest.mark.parametrize("updated", [True, False])
def test_every_other_answer_is_sglangs(monkeypatch: pytest.MonkeyPatch, updated: bool) -> None:
    reply = reply_to(SetInternalStateReqOutput(updated=updated), monkeypatch)
    assert (reply.status_code, reply.json()) == (200, [updated])
