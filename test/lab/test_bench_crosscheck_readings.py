"""What other tools write is read; our own figures in their definitions."""

from __future__ import annotations

import json
from typing import Any

import pytest
from bench_checks.crosscheck_reading import (
    Itl,
    bench_serving_reading,
    guidellm_reading,
    our_reading,
)

from sglang_layered.errors import BenchError
from sglang_layered_lab.bench.trace import Arrival, RequestTrace

# Two requests: gaps of 100, 0, 100 and 300 ms; means 100 x 2 / 3 (3 gaps) and 300 (1 gap).
TRACES = (
    RequestTrace("a", 0.9, 1.0, 10, 4, (Arrival(1.2, 1), Arrival(1.3, 3), Arrival(1.4, 4))),
    RequestTrace("b", 1.0, 1.0, 20, 2, (Arrival(1.7, 1), Arrival(2.0, 2))),
)


def bench_serving_output(**changes: Any) -> str:
    output = {
        "output_throughput": 80.5,
        "median_ttft_ms": 60.25,
        "median_itl_ms": 12.5,
        "completed": 2,
        "total_input_tokens": 30,
        "total_output_tokens": 6,
        "total_output_tokens_retokenized": 6,
        "duration": 1.5,
        "concurrency": 1.9,
        "output_lens": [4, 2],
        "errors": ["", ""],
    }
    return json.dumps(output | changes) + "\n"


def guidellm_output(**metrics: Any) -> str:
    def request(start: float, last: float, tokens: int) -> dict[str, Any]:
        times = {"request_start": start, "last_token_iteration": last, "token_iterations": tokens - 1}
        return {"prompt_tokens": 15, "output_tokens": tokens, "info": {"timings": times}}

    summaries = {
        "output_tokens_per_second": {"successful": {"mean": 3.9, "median": 99.0}},
        "time_to_first_token_ms": {"successful": {"mean": 99.0, "median": 61.0}},
        "inter_token_latency_ms": {"successful": {"mean": 99.0, "median": 13.0}},
        "request_concurrency": {"successful": {"mean": 1.5}},
    }
    run = {
        "metrics": summaries | metrics,
        "requests": {"successful": [request(100.5, 102.0, 4), request(100.0, 101.0, 2)]},
    }
    return json.dumps({"metadata": {"guidellm_version": "0.8.1"}, "benchmarks": [run]})


@pytest.mark.parametrize(("itl", "expected_ms"), [("all gaps", 100.0), ("request means", 200 / 3)])
def test_our_figures_by_hand(itl: Itl, expected_ms: float) -> None:
    """Means weigh 3 to 1, so their median is the first's; of gaps 0, 100, 100, 300 it is 100."""
    ours = our_reading(TRACES, itl)
    assert ours.itl_ms == pytest.approx(expected_ms)
    assert ours.ttft_ms == pytest.approx((200 + 700) / 2)  # since sent, not since due
    assert ours.output_tokens_per_s == pytest.approx(6 / 1.0)  # from 1.0 to the last token, which counts
    assert (ours.num_requests, ours.prompt_tokens, ours.output_tokens) == (2, 30, 6)


def test_a_failed_request_of_ours_is_no_reading() -> None:
    lost = RequestTrace("c", 0.0, 0.0, 10, 4, (Arrival(1.0, 1),), "the stream broke")
    with pytest.raises(BenchError, match=r"1 requests failed.*the stream broke"):
        our_reading((*TRACES, lost), "all gaps")


def test_bench_serving_is_read() -> None:
    found = bench_serving_reading(bench_serving_output(), [4, 2])
    assert (found.output_tokens_per_s, found.ttft_ms, found.itl_ms) == (80.5, 60.25, 12.5)
    assert (found.num_requests, found.prompt_tokens, found.output_tokens) == (2, 30, 6)
    assert found.more["output_tokens_of_text"] == 6


@pytest.mark.parametrize(
    ("text", "lengths", "what"),
    [
        ("Traceback", [4, 2], "no output of sglang.bench_serving"),
        ("{}", [4, 2], "no output of sglang.bench_serving.*errors"),
        (bench_serving_output() * 2, [4, 2], "no output of sglang.bench_serving"),  # two runs in one file
        (bench_serving_output(), [2, 4], "another order"),
        (bench_serving_output(errors=["", "refused"]), [4, 2], "1 requests failed, the first: refused"),
    ],
)
def test_what_bench_serving_did_not_write_is_refused(text: str, lengths: list[int], what: str) -> None:
    with pytest.raises(BenchError, match=what):
        bench_serving_reading(text, lengths)


def test_guidellm_is_read() -> None:
    """Its throughput is a mean, its latencies are medians; the last token of all came at 102, 2 s in."""
    found = guidellm_reading(guidellm_output())
    assert (found.output_tokens_per_s, found.ttft_ms, found.itl_ms) == (3.9, 61.0, 13.0)
    assert (found.num_requests, found.prompt_tokens, found.output_tokens) == (2, 30, 6)
    assert found.more["output_tokens_per_s_to_last_token"] == 6 / 2.0
    assert found.more["tokens_seen_as_text"] == 4
    assert "sent_late_s" not in found.more


def test_guidellm_says_how_late_it_sent() -> None:
    """It sent at 0 and 0.5 s after the first, the second being due at 0.375."""
    assert guidellm_reading(guidellm_output(), [0.0, 0.375]).more["sent_late_s"] == 0.125
    with pytest.raises(BenchError, match="2 of 3 requests; run it again"):
        guidellm_reading(guidellm_output(), [0.0, 0.375, 0.5])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        '{"benchmarks": []}',
        guidellm_output(inter_token_latency_ms={"successful": {"median": None}}),
    ],
)
def test_what_guidellm_did_not_write_is_refused(text: str) -> None:
    with pytest.raises(BenchError, match="no output of guidellm"):
        guidellm_reading(text)
