"""What an operator or a conversation does to a server, as steps that both servers can be taken through."""

from __future__ import annotations

import gzip
import json
import random
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from features_client import (
    Neighbours,
    Pair,
    ask,
    call,
    events,
    generate,
    new_rid,
    start,
    wait_for,
    wait_until_in_flight,
)
from features_requests import GREEDY
from features_servers import Served
from features_text import metric_values
from workload import Ask, answers, output_tokens, prompt

SLOW_STEP_S = 0.2


def slow(served: Served, step_s: float) -> None:
    """Every forward of the server waits this long from now on."""
    assert call(served, "/slow_down", {"forward_sleep_time": step_s}).status_code == 200


@contextmanager
def in_flight(
    pair: Pair, name: str, seed: int, check_neighbours: bool = True
) -> Iterator[tuple[dict[str, Any], Future[Any]]]:
    """A prompt of 1000 tokens is in flight in slow steps beside neighbours; gives its body and its answer."""
    body = {"input_ids": list(prompt(1000, seed)), "sampling_params": GREEDY, "rid": new_rid(name)}
    with pair.beside() if check_neighbours else Neighbours(pair.layered):
        slow(pair.layered, SLOW_STEP_S)
        to_come = start(pair.layered, body)
        try:
            wait_until_in_flight(pair.layered, body["rid"])
            yield body, to_come
        finally:
            slow(pair.layered, 0)
        to_come.result()


def drops_of(heard: list[dict[str, Any]], rid: str) -> list[str]:
    """Why cohorts with this request were dropped."""
    dropped = [event for event in heard if event["event"] == "cohort_dropped"]
    return [event["reason"] for event in dropped if rid in event["request_ids"]]


def stands_still(served: Served) -> bool:
    """No step is done for the time of four slow steps."""
    before = len(events(served))
    time.sleep(4 * SLOW_STEP_S)
    return len(events(served)) == before


def load_weights(served: Served, path: Path, **options: Any) -> None:
    """Load other weights into a running server; their version is the folder's name."""
    body = {"model_path": str(path), "weight_version": path.name, **options}
    assert ask(served, "/update_weights_from_disk", body)["success"]


def turn(served: Served, session: dict[str, Any], seed: int) -> dict[str, Any]:
    """One request of a session."""
    body = {"input_ids": list(prompt(300, seed)), "sampling_params": GREEDY, "session_params": session}
    answer: dict[str, Any] = generate(served, body)
    return answer


def conversation(served: Served) -> list[dict[str, Any]]:
    """A session's turns: append, branch with and without the previous answer, cut, replace."""
    session = ask(served, "/open_session", {"capacity_of_str_len": 9000})
    first = turn(served, {"id": session}, 21)
    parent = {"id": session, "rid": first["meta_info"]["id"]}
    later: list[dict[str, Any]] = [{}, {"drop_previous_output": True}, {"offset": 150}, {"replace": True}]
    turns = [first, *(turn(served, parent | options, 22 + i) for i, options in enumerate(later))]
    close(served, session)
    return turns


def streaming_conversation(served: Served) -> list[dict[str, Any]]:
    """A session whose KV cache stays with it between the turns."""
    session = ask(served, "/open_session", {"capacity_of_str_len": 9000, "streaming": True})
    turns = [turn(served, {"id": session}, 26 + index) for index in range(3)]
    close(served, session)
    return turns


def interrupted_conversation(served: Served) -> list[dict[str, Any]]:
    """A streaming session whose second turn is aborted: in flight, or decoding on the release."""
    session = ask(served, "/open_session", {"capacity_of_str_len": 9000, "streaming": True})
    first = turn(served, {"id": session}, 26)
    body = {"input_ids": list(prompt(900, 27)), "sampling_params": {**GREEDY, "max_new_tokens": 900}}
    slow(served, SLOW_STEP_S)
    to_come = start(served, body | {"session_params": {"id": session}, "rid": "interrupted"})
    if served.steps is None:
        time.sleep(5 * SLOW_STEP_S)
    else:
        wait_until_in_flight(served, "interrupted")
    call(served, "/abort_request", {"rid": "interrupted"})
    assert to_come.result()["meta_info"]["finish_reason"]["type"] == "abort"
    slow(served, 0)
    third = turn(served, {"id": session}, 28)
    close(served, session)
    return [first, third]


def close(served: Served, session: str) -> None:
    """Close a session; nothing can be asked in it any more."""
    assert call(served, "/close_session", {"session_id": session}).status_code == 200
    closed = {"input_ids": [5, 6], "session_params": {"id": session}}
    assert call(served, "/generate", closed).status_code == 400


def embeds(num_tokens: int, seed: int) -> list[list[float]]:
    """Input embeddings about as large as the tiny model's own."""
    rng = random.Random(seed)
    return [[round(rng.gauss(0, 0.2), 4) for _ in range(128)] for _ in range(num_tokens)]


def trace_events(folder: Path) -> list[Any]:
    """The profiler's trace, once it is there as a whole."""

    def read() -> list[Any] | None:
        try:
            [path] = folder.glob("*.trace.json.gz")
            found: list[Any] = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
            return found
        except (ValueError, EOFError, gzip.BadGzipFile):
            return None

    trace: list[Any] = wait_for(read, "the profiler's trace", 60)
    return trace


def counted_workload(served: Served) -> tuple[list[list[int]], dict[str, float]]:
    """Four requests, two of them long ones beside decode: their tokens, and by how much counters rose."""
    shapes = ((20, 0.0), (30, 0.0), (900, 0.3), (300, 0.4))
    asks = [Ask(prompt(length, 50 + length), delay_s, 60) for length, delay_s in shapes]
    before = metric_values(served)
    outputs = [output_tokens(answer) for answer in answers(served.url, asks)]
    risen = {name: value - before.get(name, 0) for name, value in metric_values(served).items()}
    return outputs, {name: count for name, count in risen.items() if count}
