"""Speaks to a running server in token ids: one answer, a streamed one, a crowd of streams, the settings."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import httpx

from sglang_layered.errors import GpuHostError
from sglang_layered_lab.models.router_topics import TokenRange

MIN_ARRIVALS = 4  # each running stream has this many before a prompt is sent
POLL_S = 0.02


def request_body(
    ids: list[int], max_new_tokens: int, temperature: float = 0, **fields: Any
) -> dict[str, Any]:
    """A /generate request that does not end early, greedy unless told."""
    sampling = {"temperature": temperature, "max_new_tokens": max_new_tokens, "ignore_eos": True}
    return {"input_ids": ids, "sampling_params": sampling, **fields}


def draw_prompt(
    source: random.Random, num_tokens: int, vocab_size: int, topics: Sequence[TokenRange] = ()
) -> list[int]:
    """Random token ids: of one of the topics, or else away from the ends of the vocabulary."""
    first, end = source.choice(topics) if topics else (vocab_size // 8, vocab_size * 7 // 8)
    return [source.randrange(first, end) for _ in range(num_tokens)]


def generate(base_url: str, ids: list[int], max_new_tokens: int, timeout_s: float) -> list[int]:
    """The tokens of one greedy answer."""
    reply = httpx.post(
        f"{base_url}/generate", json=request_body(ids, max_new_tokens), timeout=timeout_s, trust_env=False
    )
    if reply.status_code != 200:
        raise GpuHostError(f"/generate answered {reply.status_code}: {reply.text[:300]}")
    return [int(token) for token in reply.json()["output_ids"]]


def server_mode(base_url: str) -> str:
    """What /server_info says of the prefill mode."""
    info = httpx.get(f"{base_url}/server_info", timeout=60, trust_env=False).json()
    return str(info["internal_states"][0]["prefill_mode"])


def change_settings(base_url: str, **settings: int) -> None:
    """Change settings of a running layered server, from the next cohort on."""
    body = {"server_args": settings}
    reply = httpx.post(f"{base_url}/set_internal_state", json=body, timeout=60, trust_env=False)
    if reply.json() != [True]:
        raise GpuHostError(f"the server did not take {settings}: {reply.text[:300]}")


class TimedStream(threading.Thread):
    """One streamed answer; `arrivals_s` are on the clock of time.perf_counter."""

    def __init__(self, base_url: str, body: dict[str, Any], timeout_s: float) -> None:
        super().__init__(daemon=True)
        self._url, self._body, self._timeout_s = f"{base_url}/generate", {**body, "stream": True}, timeout_s
        self._stopped = threading.Event()
        self.sent_s = 0.0
        self.arrivals_s: list[float] = []
        self.failure: str | None = None

    def run(self) -> None:
        """Read until the end, or until it is stopped."""
        try:
            with httpx.Client(timeout=self._timeout_s, trust_env=False) as client:
                self.sent_s = time.perf_counter()
                with client.stream("POST", self._url, json=self._body) as reply:
                    for line in reply.iter_lines():
                        if self._stopped.is_set():
                            return
                        self._note(line)
        except httpx.HTTPError as error:
            self.failure = f"{type(error).__name__}: {error}"

    def stop(self) -> None:
        """Close the connection at the next token; the server then aborts the request."""
        self._stopped.set()

    def _note(self, line: str) -> None:
        if line.startswith("data:") and "[DONE]" not in line:
            now = time.perf_counter()
            if '"error"' in line:
                self.failure = json.dumps(json.loads(line[5:]))[:300]
            self.arrivals_s.append(now)


class Crowd:
    """Streams that decode all the while, inside a `with` block; entering waits until each of them decodes."""

    def __init__(self, base_url: str, bodies: list[dict[str, Any]], timeout_s: float) -> None:
        self.streams = [TimedStream(base_url, body, timeout_s) for body in bodies]
        self._timeout_s = timeout_s

    def __enter__(self) -> Crowd:
        """Start them all."""
        for stream in self.streams:
            stream.start()
        try:
            wait_for(
                lambda: all(len(stream.arrivals_s) >= MIN_ARRIVALS for stream in self.streams),
                self._timeout_s,
            )
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop them all."""
        for stream in self.streams:
            stream.stop()
        for stream in self.streams:
            stream.join(timeout=10)

    def check(self) -> None:
        """Raise if a stream has ended."""
        for stream in self.streams:
            if stream.failure or not stream.is_alive():
                raise GpuHostError(f"a running stream ended: {stream.failure or 'its tokens were used up'}")


def wait_for(condition: Callable[[], bool], timeout_s: float) -> None:
    """Poll until it holds."""
    end_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end_s:
            raise GpuHostError(f"the running streams did not all decode within {timeout_s:g} s")
        time.sleep(POLL_S)
