"""The benchmark's client against a server without a model: faults, loads, cancellation."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import orjson
import pytest
import uvloop
from aiohttp import web
from bench_checks.client_honesty import fake_server
from bench_checks.fake_server import FakeServer, Script

from sglang_layered.errors import BenchError
from sglang_layered_lab.bench.client import BenchClient, run_client
from sglang_layered_lab.bench.client_data import ClientResult, PlannedRequest, Progress

PROMPT = (11, 12, 13)
SOON = Script(first_s=0.001, gap_s=0.001)
LONG_S = 300.0


@contextlib.asynccontextmanager
async def serving(server: FakeServer) -> AsyncIterator[str]:
    runner = web.AppRunner(server.app(), handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def play(server: FakeServer, requests: list[PlannedRequest], **options: Any) -> ClientResult:
    async def played() -> ClientResult:
        async with serving(server) as url, BenchClient(url, requests) as client:
            return await client.run(**({"timeout_s": LONG_S} | options))

    return uvloop.run(played())


def planned(name: str, script: Script = SOON, *, num_tokens: int = 5, due_s: float = 0.0) -> PlannedRequest:
    return PlannedRequest(name, due_s, PROMPT, num_tokens, script.sampling())


def most_at_once(result: ClientResult) -> int:
    """Most requests between their sending and their last token at one time, counted from their traces."""
    spans = [(trace.sent_s, trace.arrivals[-1].time_s) for trace in result.traces]
    return max(sum(sent_s <= at_s <= last_s for sent_s, last_s in spans) for at_s, _ in spans)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Of a fake server in its own process."""
    with fake_server() as address:
        yield address


def test_every_token_is_noted_between_its_write_and_the_next_at_256_streams() -> None:
    """Honesty without a stopwatch: no next token is written before the one before it was noted."""
    clients: list[BenchClient] = []

    async def noted(request_id: str, num_tokens: int) -> None:
        stream = next(each for each in clients[0]._streams if each.request.request_id == request_id)
        while stream.num_tokens < num_tokens:
            await asyncio.sleep(0)

    server = FakeServer(before_write=noted)
    requests = [planned(f"s{index}", Script(first_s=0.2, gap_s=0.02, seed=index)) for index in range(256)]

    async def played() -> ClientResult:
        async with serving(server) as url, BenchClient(url, requests) as client:
            clients.append(client)
            return await client.run(timeout_s=LONG_S)

    result = uvloop.run(played())
    zero_s = result.times.zero_monotonic_s
    for trace in result.traces:
        written = server.written[trace.request_id]
        assert trace.error is None
        assert (
            [each.num_tokens for each in trace.arrivals]
            == [count for _, count in written.events]
            == [1, 2, 3, 4, 5]
        )
        noted_s = [each.time_s + zero_s for each in trace.arrivals]
        written_s = [time_s for time_s, _ in written.events]
        assert trace.due_s + zero_s <= trace.sent_s + zero_s <= written.received_s <= written_s[0]
        in_order = [time_s for pair in zip(written_s, noted_s, strict=True) for time_s in pair]
        assert in_order == pytest.approx(sorted(in_order), abs=1e-9)  # rounding of sums only
    assert most_at_once(result) <= result.report.max_open_streams
    assert result.times.last_token_s == max(trace.arrivals[-1].time_s for trace in result.traces)
    assert result.times.ready_s <= 0 < result.times.last_token_s <= result.times.ended_s


@pytest.mark.parametrize(
    ("script", "message", "num_tokens"),
    [
        (Script(fault="status"), "HTTP status 500", 0),
        (Script(fault="cut", fault_after=2, first_s=0.01), "broken after ", 2),
        (Script(fault="short", fault_after=2, first_s=0.01), "2 of 5 tokens came", 2),
        (
            Script(fault="error-event", fault_after=1, first_s=0.01),
            "the server says: a fault was asked for",
            1,
        ),
        (Script(fault="back", fault_after=3, first_s=0.01), "fell to 0", 3),
    ],
)
def test_a_failing_request_is_told_and_loses_no_other(script: Script, message: str, num_tokens: int) -> None:
    result = play(FakeServer(), [planned("good"), planned("bad", script), planned("also good")])
    good, bad, other = result.traces
    assert (good.error, other.error) == (None, None)
    assert bad.error is not None and message in bad.error
    assert (bad.arrivals[-1].num_tokens if bad.arrivals else 0) <= num_tokens  # a cut may take some along
    assert good.arrivals[-1].num_tokens == other.arrivals[-1].num_tokens == 5


def test_the_time_out_ends_what_hangs_and_what_was_never_sent() -> None:
    hanging = planned("hanging", Script(fault="hang", fault_after=1, first_s=0.001))
    never = planned("never", due_s=10 * LONG_S)
    server = FakeServer()
    result = play(server, [hanging, never], timeout_s=0.5)
    hung, unsent = result.traces
    assert hung.error == "no end within the 0.5 s that the run may take"
    assert unsent.error == "not sent within the 0.5 s that the run may take"
    assert unsent.arrivals == () and unsent.sent_s == result.times.ended_s
    assert "never" not in server.written


def test_a_closed_loop_sends_when_the_one_before_has_ended() -> None:
    result = play(FakeServer(), [planned(f"r{index}") for index in range(6)], num_clients=1)
    assert [trace.error for trace in result.traces] == [None] * 6
    assert result.report.max_open_streams == 1
    for before, after in zip(result.traces, result.traces[1:], strict=False):
        assert before.arrivals[-1].time_s <= after.due_s <= after.sent_s


def test_as_many_clients_as_asked_are_open_at_once() -> None:
    result = play(FakeServer(), [planned(f"r{index}") for index in range(9)], num_clients=3)
    assert result.report.max_open_streams == 3
    assert all(trace.error is None for trace in result.traces)


def test_an_open_loop_sends_in_the_order_of_the_due_times_and_never_before() -> None:
    requests = [planned("late", due_s=0.05), planned("first"), planned("second", due_s=0.02)]
    late, first, second = play(FakeServer(), requests).traces
    assert first.sent_s <= second.sent_s <= late.sent_s
    assert all(trace.sent_s >= trace.due_s for trace in (late, first, second))


@pytest.mark.parametrize(
    "script",
    [
        Script(first_s=0.001, gap_s=0.001, tokens_per_event=3, events_per_write=2),
        Script(first_s=0.001, gap_s=0.001, split_s=0.002),
    ],
)
def test_joined_and_split_events_lose_no_token(script: Script) -> None:
    server = FakeServer()
    (trace,) = play(server, [planned("one", script, num_tokens=20)]).traces
    assert trace.error is None
    written = [count for _, count in server.written["one"].events]
    seen = [each.num_tokens for each in trace.arrivals]
    assert seen[-1] == 20 and set(seen) <= set(written)  # writes may come in one read


def test_a_text_prompt_is_counted_by_the_server() -> None:
    request = PlannedRequest("text", 0.0, "four words of text", 3, SOON.sampling())
    (trace,) = play(FakeServer(), [request]).traces
    assert (trace.prompt_tokens, trace.error) == (4, None)


def test_what_is_posted() -> None:
    body = orjson.loads(PlannedRequest("one", 0.0, PROMPT, 5, {"top_k": 3}).body())
    sampling = {"temperature": 0.0, "ignore_eos": True, "max_new_tokens": 5, "top_k": 3}
    assert body == {"rid": "one", "stream": True, "input_ids": [11, 12, 13], "sampling_params": sampling}


def test_cancelling_closes_every_connection() -> None:
    server = FakeServer()
    requests = [
        planned(f"r{index}", Script(first_s=0.001, gap_s=0.01), num_tokens=100_000) for index in range(8)
    ]

    async def cancelled() -> None:
        async with serving(server) as url:
            async with BenchClient(url, requests) as client:
                running = asyncio.create_task(client.run(timeout_s=LONG_S))
                await until(
                    lambda: len(server.written) == 8 and all(one.events for one in server.written.values())
                )
                running.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await running
            await until(lambda: server.open == 0)

    uvloop.run(cancelled())
    assert sorted(server.aborted) == sorted(request.request_id for request in requests)


async def until(true: Callable[[], bool]) -> None:
    while not true():
        await asyncio.sleep(0.01)


@pytest.fixture
def python_hears_ctrl_c() -> Iterator[None]:
    """As in a terminal: a process that was started in the background ignores SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_closes_the_connections_and_is_raised(url: str, python_hears_ctrl_c: None) -> None:
    def interrupt(progress: Progress) -> None:
        if progress.num_tokens:
            os.kill(os.getpid(), signal.SIGINT)

    endless = planned("interrupted", Script(first_s=0.001, gap_s=0.01), num_tokens=100_000)
    with pytest.raises(KeyboardInterrupt):
        run_client(url, [endless], timeout_s=LONG_S, on_progress=interrupt)
    while (state := httpx.get(f"{url}/open", trust_env=False).json())["open"]:
        pass
    assert "interrupted" in state["aborted"]


def test_progress_tells_and_its_failure_does_not_end_the_run(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[Progress] = []

    def broken(progress: Progress) -> None:
        told.append(progress)
        raise ValueError("no terminal")

    request = planned("told", Script(first_s=0.01, gap_s=0.02), num_tokens=40)
    result = run_client(url, [request], timeout_s=LONG_S, on_progress=broken)
    assert result.traces[0].error is None
    assert (len(told), told[0].num_sent) == (1, 1)
    assert "Progress is no longer shown" in caplog.text


def test_ready_is_called_before_the_first_request(url: str) -> None:
    def ask() -> None:
        assert "after ready" not in httpx.get(f"{url}/written", trust_env=False).json()
        asked.append(True)

    asked: list[bool] = []
    assert run_client(url, [planned("after ready")], timeout_s=LONG_S, on_ready=ask).traces[0].error is None
    assert asked == [True]


def test_no_server_is_one_clear_error() -> None:
    with pytest.raises(BenchError, match=r"no SGLang server at http://127\.0\.0\.1:1"):
        run_client("http://127.0.0.1:1", [planned("a")], timeout_s=1.0)
