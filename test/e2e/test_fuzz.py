"""Made-up requests: the layered server answers each with the status that the released SGLang gives."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings

from fuzz_bodies import made_up_requests
from workload import Ask, prompt

pytestmark = pytest.mark.server

NUM_EXAMPLES = 150
TIMEOUT_S = 60.0


def status_of(url: str, path: str, content: bytes) -> str:
    """The status, and the error code of a stream whose status was sent before the error was known."""
    headers = {"content-type": "application/json"}
    try:
        reply = httpx.post(url + path, content=content, headers=headers, timeout=TIMEOUT_S, trust_env=False)
    except httpx.RemoteProtocolError:  # a stream whose request turned out to be bad after its status was sent
        return "broken off"
    if "event-stream" not in reply.headers.get("content-type", ""):
        return f"{reply.status_code}"
    events = [line.removeprefix("data: ") for line in reply.text.splitlines() if line.startswith("data: {")]
    errors = [event["error"] for event in map(json.loads, events) if event.get("error")]
    return f"{reply.status_code} {[error.get('code') for error in errors]}"


def is_alive(url: str) -> bool:
    return httpx.get(f"{url}/health_generate", timeout=TIMEOUT_S, trust_env=False).status_code == 200


@pytest.fixture
def busy_layered(layered_moe: Any) -> Iterator[str]:
    """The layered server with one request that decodes all the time: every prompt becomes a cohort."""
    done = threading.Event()

    def decode() -> None:
        body = Ask(prompt(10, 800), 0.0, 8000).body() | {"stream": True}
        while not done.is_set():
            url = f"{layered_moe.url}/generate"
            with httpx.stream("POST", url, json=body, timeout=TIMEOUT_S, trust_env=False) as reply:
                for _ in reply.iter_lines():
                    if done.is_set():
                        break

    thread = threading.Thread(target=decode)
    thread.start()
    yield layered_moe.url
    done.set()
    thread.join()


def test_made_up_requests_get_the_status_of_the_release(busy_layered: str, stock_moe: Any) -> None:
    seen: dict[str, int] = {}

    @settings(
        max_examples=NUM_EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],  # shrinking would take minutes, and the bodies are small
    )
    @given(request=made_up_requests())
    def same_status(request: tuple[str, dict[str, Any]]) -> None:
        path, body = request
        content = json.dumps(body).encode()
        mine, theirs = pool.map(lambda url: status_of(url, path, content), (busy_layered, stock_moe.url))
        seen[theirs] = seen.get(theirs, 0) + 1
        assert mine == theirs
        if sum(seen.values()) % 30 == 0:  # a busy server answers about its health once a second
            assert is_alive(busy_layered)

    with ThreadPoolExecutor(2) as pool:
        same_status()
    print(f"statuses: {seen}")
    assert any(status.startswith("200") for status in seen)
    assert any(status.startswith("4") for status in seen)
    assert is_alive(busy_layered) and is_alive(stock_moe.url)
