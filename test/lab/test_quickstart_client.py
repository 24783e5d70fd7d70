"""The quickstart's client against a server whose token times are known."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest

from sglang_layered.errors import QuickstartError
from sglang_layered_lab.quickstart.client import play_once
from sglang_layered_lab.quickstart.scenario import Scenario


class FakeModel(BaseHTTPRequestHandler):
    """Streams completions; a long prompt waits `TTFT_S`; every other chunk holds two tokens."""

    TTFT_S, STEP_S = 0.6, 0.05
    asked: ClassVar[list[dict[str, object]]] = []
    fail_after: int | None = None

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(body)
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        time.sleep(self.TTFT_S if len(body["prompt"]) > 1000 else 0)
        count = step = 0
        while count < body["max_tokens"]:
            if self.fail_after is not None and count >= self.fail_after:
                break
            count = min(count + 1 + step % 2, body["max_tokens"])
            step += 1
            text = "" if step % 3 == 0 else "x"  # a chunk may hold no finished character
            if not self._send(self._chunk(count, [{"index": 0, "text": text, "finish_reason": None}])):
                return
            time.sleep(self.STEP_S)
        self._send(self._chunk(count, []))
        self._send("[DONE]")

    @staticmethod
    def _chunk(count: int, choices: list[dict[str, object]]) -> str:
        usage = {"prompt_tokens": 1, "completion_tokens": count, "total_tokens": count + 1}
        chunk = {"id": "1", "object": "text_completion", "created": 1, "model": "m"}
        return json.dumps(chunk | {"choices": choices, "usage": usage})

    def _send(self, data: str) -> bool:
        try:
            self.wfile.write(f"data: {data}\n\n".encode())
            self.wfile.flush()
        except OSError:  # the client has hung up
            return False
        return True

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def fake_url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(FakeModel, "asked", [])
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeModel)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_client_notes_when_tokens_came(fake_url: str) -> None:
    spec = Scenario()
    played = play_once(fake_url, spec, 0, 4096)
    assert len(played.running) == 4
    assert played.ttft_s >= FakeModel.TTFT_S
    assert played.long[-1].num_tokens == spec.long_max_tokens
    for one in played.running:
        counts = [arrival.num_tokens for arrival in one]
        assert counts == sorted(set(counts)) and counts[:3] == [1, 3, 4]
        before = max(arrival.num_tokens for arrival in one if arrival.time_s < 0)
        at_first = max(arrival.num_tokens for arrival in one if arrival.time_s <= played.ttft_s)
        assert before >= spec.tokens_before
        assert counts[-1] >= at_first + spec.tokens_after - 2
        assert counts[-1] < spec.running_max_tokens
        assert one[-1].time_s - one[0].time_s >= FakeModel.STEP_S * (len(one) - 1) / 2, "noted all at once"
    prompts = [len(body["prompt"]) for body in FakeModel.asked]  # type: ignore[arg-type]
    assert sorted(prompts) == [1280] * 4 + [2048]
    assert all(body["ignore_eos"] and body["temperature"] == 0 for body in FakeModel.asked)


def test_client_says_when_a_stream_ends_early(fake_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeModel, "fail_after", 3)
    with pytest.raises(QuickstartError, match="ended after"):
        play_once(fake_url, Scenario(), 0, 4096)


def test_client_says_when_nobody_answers() -> None:
    with pytest.raises(QuickstartError, match="failed a request"):
        play_once("http://127.0.0.1:9", Scenario(), 0, 4096)
