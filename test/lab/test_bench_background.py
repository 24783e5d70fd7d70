"""Streams beside the load: they decode from before the zero to the end, and their gaps are found."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import pairwise

import httpx
import numpy as np
import pytest
from bench_checks.client_honesty import fake_server
from bench_checks.fake_server import Script
from hypothesis import given
from hypothesis import strategies as st

from sglang_layered.errors import BenchError
from sglang_layered_lab.bench.beside import gaps_beside
from sglang_layered_lab.bench.client import run_client
from sglang_layered_lab.bench.client_data import PlannedRequest
from sglang_layered_lab.bench.trace import Arrival, RequestTrace

SLOWLY = Script(first_s=0.01, gap_s=0.01)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with fake_server() as address:
        yield address


def request(name: str, num_tokens: int, script: Script = SLOWLY) -> PlannedRequest:
    return PlannedRequest(name, 0.0, (1, 2, 3), num_tokens, script.sampling())


@pytest.mark.parametrize("tokens_before", [2, 8])
def test_the_background_decodes_from_before_the_zero_to_the_end(url: str, tokens_before: int) -> None:
    ready: list[float] = []
    result = run_client(
        url,
        [request("measured", 20)],
        timeout_s=60,
        on_ready=lambda: ready.append(1.0),
        background=[request(f"beside{index}", 100_000) for index in range(3)],
        tokens_before=tokens_before,
    )
    assert ready and [trace.request_id for trace in result.traces] == ["measured"]
    assert result.traces[0].error is None
    assert len(result.background) == 3
    for trace in result.background:
        # two tokens may come in one piece
        before = [arrival.num_tokens for arrival in trace.arrivals if arrival.time_s < 0]
        assert trace.sent_s < 0 and before[-1] >= tokens_before
        assert trace.arrivals[-1].time_s > result.traces[0].arrivals[0].time_s
        assert trace.arrivals[-1].num_tokens < 100_000
    with httpx.Client(trust_env=False) as client:
        for _ in range(200):
            state = client.get(f"{url}/open").json()
            if not state["open"]:
                break
            asyncio.run(asyncio.sleep(0.02))
    assert state["open"] == 0
    assert {f"beside{index}" for index in range(3)} <= set(state["aborted"])


def test_a_background_that_ends_by_itself_is_an_error(url: str) -> None:
    with pytest.raises(
        BenchError, match=r"all its 3 tokens had come; give load\.background\.output_tokens more"
    ):
        run_client(url, [request("long", 200)], timeout_s=60, background=[request("short", 3)])


def test_a_background_that_fails_is_an_error(url: str) -> None:
    broken = request("broken", 50, Script(first_s=0.01, gap_s=0.01, fault="status"))
    with pytest.raises(BenchError, match="HTTP status 500"):
        run_client(url, [request("any", 2)], timeout_s=60, background=[broken])


def test_a_background_that_never_decodes_is_an_error(url: str) -> None:
    with pytest.raises(BenchError, match="does not decode after"):
        run_client(
            url,
            [request("alone", 2)],
            timeout_s=0.5,
            background=[request("hung", 50, Script(first_s=0.01, gap_s=0.01, fault="hang"))],
        )


def trace(sent_s: float, times_s: list[float]) -> RequestTrace:
    arrivals = tuple(Arrival(time_s, index + 1) for index, time_s in enumerate(times_s))
    return RequestTrace("x", sent_s, sent_s, 10, 10, arrivals)


@given(
    prompts=st.lists(st.tuples(st.integers(0, 50), st.integers(1, 20)), max_size=4),
    streams=st.lists(st.lists(st.integers(-10, 80), min_size=1, unique=True), max_size=3),
)
def test_gaps_beside_equal_a_walk_over_half_seconds(
    prompts: list[tuple[int, int]], streams: list[list[int]]
) -> None:
    """Times are whole seconds: a gap overlaps a prefill when both hold the middle of some second."""
    middles = {sent + step + 0.5 for sent, length in prompts for step in range(length)}
    expected = []
    for times in map(sorted, streams):
        for start, end in pairwise(times):
            if any(start < middle < end for middle in middles):
                expected.append(float(end - start))
    found = gaps_beside(
        [trace(float(sent), [float(sent + length)]) for sent, length in prompts],
        [trace(-100.0, [float(each) for each in sorted(times)]) for times in streams],
    )
    assert sorted(np.asarray(found).tolist()) == sorted(expected)
