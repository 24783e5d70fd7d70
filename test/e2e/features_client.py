"""Asks two servers the same, the layered one beside requests that decode, and compares whole answers."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
from event_lines import events_now
from event_tail import EventTail

from features_requests import GREEDY, PROMPT
from features_servers import Served
from workload import prompt

TIMEOUT_S = 120
TOLERANCE = 1e-4
# Which request it was, and how long it took; all else in an answer is compared.
VOLATILE = {"id", "rid", "created", "created_at", "total_duration"} | {
    "forward_entry_time", "prefill_finished_time", "queue_time", "e2e_latency", "request_received_ts",
    "api_server_dispatch_finish_ts", "request_finished_ts", "response_sent_to_client_ts", "decode_throughput",
    "first_token_latency", "storage_prefetch_wait", "storage_staging_wait",
}  # fmt: skip
NEIGHBOURS = ("left", "right")
_numbers = itertools.count()
_heard: dict[Path, tuple[EventTail, list[dict[str, Any]]]] = {}


def call(served: Served, path: str, body: Any = None) -> httpx.Response:
    return httpx.post(served.url + path, json=body, timeout=TIMEOUT_S, trust_env=False)


def get(served: Served, path: str) -> httpx.Response:
    return httpx.get(served.url + path, timeout=TIMEOUT_S, trust_env=False)


def ask(served: Served, path: str, body: dict[str, Any]) -> Any:
    reply = call(served, path, body)
    assert reply.status_code == 200, reply.text
    return reply.json()


def generate(served: Served, body: dict[str, Any]) -> Any:
    return ask(served, "/generate", body)


def start(served: Served, body: dict[str, Any], path: str = "/generate") -> Future[Any]:
    """Send a request from a thread."""
    pool = ThreadPoolExecutor(1)
    future = pool.submit(ask, served, path, body)
    pool.shutdown(wait=False)
    return future


def new_rid(name: str = "feature") -> str:
    return f"{name}-{next(_numbers)}"


def assert_same(mine: Any, theirs: Any, where: str = "answer", tolerance: float = TOLERANCE) -> None:
    """Two JSON values are equal but for ids and times; numbers with a fraction within the tolerance."""
    if isinstance(theirs, dict):
        assert mine.keys() - VOLATILE == theirs.keys() - VOLATILE, where
        for name in sorted(theirs.keys() - VOLATILE):
            assert_same(mine[name], theirs[name], f"{where}.{name}", tolerance)
    elif isinstance(theirs, list):
        assert len(mine) == len(theirs), where
        for index, (left, right) in enumerate(zip(mine, theirs, strict=True)):
            assert_same(left, right, f"{where}[{index}]", tolerance)
    elif isinstance(theirs, float):
        assert abs(mine - theirs) <= tolerance, f"{where}: {mine} is not {theirs}"
    else:
        assert mine == theirs, f"{where}: {mine} is not {theirs}"


def events(served: Served) -> list[dict[str, Any]]:
    """What the server's listener has heard so far; a line still being written is left out."""
    assert served.steps is not None
    tail, heard = _heard.setdefault(served.steps, (EventTail(served.steps), []))
    heard += tail.new()
    return heard.copy()


def wait_for(condition: Any, what: str, timeout_s: float = 20) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {timeout_s} s for {what}"
        time.sleep(0.01)
    return value


def wait_until_in_flight(served: Served, rid: str) -> None:
    """Return once the request is in a cohort."""

    def admitted() -> bool:
        heard = events(served)
        return any(event["event"] == "cohort_admitted" and rid in event["prompt_rows"] for event in heard)

    wait_for(admitted, f"{rid} to become a cohort")


def groups_passed(heard: list[dict[str, Any]]) -> dict[str, set[tuple[int, int]]]:
    """By request, the (index, number) of the layer groups it passed beside requests that decoded."""
    passed: dict[str, set[tuple[int, int]]] = {}
    for step in heard:
        if step["event"] == "step_done" and step["kind"] == "layered" and step["num_decode_rows"]:
            for rid in step["prompt"]:
                passed.setdefault(rid, set()).add((step["group_index"], step["num_groups"]))
    return passed


def really_layered(heard: list[dict[str, Any]], rid: str = "") -> list[str]:
    """Requests, named `rid` or a child of it, that passed every one of several layer groups beside decode."""
    return [
        name
        for name, groups in groups_passed(heard).items()
        if name.startswith(rid)
        and not name.startswith(NEIGHBOURS)
        and any({(index, num) for index in range(num)} <= groups for _, num in groups if num >= 3)
    ]


def neighbour_body(name: str) -> dict[str, Any]:
    """A request that decodes for long; its first token starts no other prompt, so that nothing is shared."""
    number = NEIGHBOURS.index(name)
    tokens = [1000 + number, *prompt(19, 900 + number)]
    return {"input_ids": tokens, "sampling_params": {**GREEDY, "max_new_tokens": 3000}}


@dataclass
class Neighbours:
    """Two streams that decode on a server while a block runs; `tokens` holds what each has got so far.

    Each has a new id every time: two seconds after a stream has ended SGLang aborts its id once more.
    """

    served: Served
    options: dict[str, Any] = field(default_factory=dict)
    tokens: dict[str, list[int]] = field(default_factory=dict)

    def _stream(self, name: str, rid: str) -> None:
        body = neighbour_body(name) | {"rid": rid, "stream": True} | self.options
        url = f"{self.served.url}/generate"
        with (
            suppress(httpx.HTTPError),
            httpx.stream("POST", url, json=body, timeout=TIMEOUT_S, trust_env=False) as reply,
        ):
            for event in events_now(reply):
                self.tokens[name] = event["output_ids"]

    def __enter__(self) -> Neighbours:
        self._rids = {name: new_rid(name) for name in NEIGHBOURS}
        self._threads = [
            threading.Thread(target=self._stream, args=item, daemon=True) for item in self._rids.items()
        ]
        for thread in self._threads:
            thread.start()
        wait_for(lambda: len(self.tokens) == len(NEIGHBOURS), "both neighbours to decode")
        return self

    def __exit__(self, *_: object) -> None:
        for rid in self._rids.values():
            call(self.served, "/abort_request", {"rid": rid})
        for thread in self._threads:
            thread.join()


@dataclass
class Pair:
    """The layered server and the release, with the same flags."""

    layered: Served
    stock: Served

    @cached_property
    def neighbours_alone(self) -> dict[str, list[int]]:
        """What the neighbours' first tokens are on the release, one after the other."""
        short = {"sampling_params": {**GREEDY, "max_new_tokens": 150}}
        return {name: generate(self.stock, neighbour_body(name) | short)["output_ids"] for name in NEIGHBOURS}

    @cached_property
    def greedy(self) -> Any:
        """The release's plain greedy answer to the prompt that all features share."""
        return generate(self.stock, {"input_ids": list(PROMPT), "sampling_params": GREEDY})

    def flushed(self) -> Pair:
        """Empty both prefix caches, once all that is asked only once has been asked."""
        _ = self.neighbours_alone, self.greedy
        for served in (self.layered, self.stock):
            served.server.flush_cache()
        return self

    @contextmanager
    def beside(self, **options: Any) -> Iterator[Neighbours]:
        """Neighbours decode on the layered server meanwhile, and get the release's tokens."""
        expected = self.neighbours_alone
        with Neighbours(self.layered, options) as neighbours:
            yield neighbours
        for name, tokens in neighbours.tokens.items():
            length = min(len(tokens), len(expected[name]))
            assert tokens[:length] == expected[name][:length], f"the neighbour on the {name} was disturbed"

    def both(self, path: str, body: dict[str, Any], **options: Any) -> tuple[Any, Any]:
        """The answer in layered mode, through layer groups beside neighbours, and the release's."""
        with self.beside(**options):
            theirs = start(self.stock, body, path)
            mine = self.through_groups(path, body)
        return mine, theirs.result()

    def through_groups(self, path: str, body: dict[str, Any]) -> Any:
        """Ask the layered server, where neighbours decode; the prompt must pass several layer groups."""
        rid, already = body.get("rid", ""), len(events(self.layered))
        answer = ask(self.layered, path, body)
        for name in [rid] if isinstance(rid, str) else rid:
            wait_for(
                lambda name=name: really_layered(events(self.layered)[already:], name), "its layer groups"
            )
        return answer

    def both_beside(self, talk: Callable[[Served], Any], each_layered: bool = True) -> tuple[Any, Any]:
        """What `talk` gets from each server beside neighbours.

        For bfloat16, where the last bit of a row depends on how many rows decode beside it.
        """
        already, got = len(events(self.layered)), []
        for served in (self.layered, self.stock):
            with Neighbours(served):
                got.append(talk(served))
        mine, theirs = got
        ids = [answer["meta_info"]["id"] for answer in (mine if isinstance(mine, list) else [mine])]
        passed = really_layered(events(self.layered)[already:])
        assert not each_layered or set(ids) <= set(passed)
        return mine, theirs

    def generate(self, body: dict[str, Any], **options: Any) -> tuple[Any, Any]:
        """As `both`; `options` go into the neighbours' requests."""
        return self.both("/generate", {"rid": new_rid(), **body}, **options)
