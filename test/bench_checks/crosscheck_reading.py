"""What a benchmark tool says of one run of a load, and what we say in that tool's definitions. Pure.

Output tokens/s is in all of them that of the whole run, ramp and end included: all output tokens over the
time from the first request to the end of the last. The tools end it a little later than the last token:
`sglang.bench_serving` when the server has answered one more question, GuideLLM when the last response is
closed. They differ in ITL, see `Itl`, and in where TTFT begins, see `DEFINITIONS`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import inf, nextafter
from typing import Any, Literal

import numpy as np

from sglang_layered.errors import BenchError
from sglang_layered_lab.bench.metrics import Window, requests_of, throughput_of, tokens_of
from sglang_layered_lab.bench.trace import RequestTrace

# all gaps: the median of all gaps of all requests together, our TBT.
# request means: the median of the requests' mean gaps (our TPOT), each weighted by its number of gaps.
Itl = Literal["all gaps", "request means"]

DEFINITIONS: Mapping[str, str] = {
    "output_tokens_per_s": "all output tokens / time of the whole run",
    "run ends": "ours: last token; bench_serving: answer to one more GET /server_info; GuideLLM: last"
    " response closed",
    "ttft_ms": "median over requests",
    "TTFT begins": "ours: before a connection is taken or made; bench_serving: before a connection is made,"
    " a new one for each request; GuideLLM: when the request's head is written, connection at hand",
    "itl_ms": "bench_serving: median of all gaps; GuideLLM: median of the requests' mean gaps, weighted by"
    " their gaps; ours is computed anew for each",
    "endpoint": "ours and bench_serving: /generate, where each event has all text so far; GuideLLM:"
    " /v1/completions, where each event has the new text and token counts",
}


@dataclass(frozen=True, slots=True)
class Reading:
    """Figures of one run; `itl_ms` is one of the definitions of `Itl`. `more` is not compared."""

    output_tokens_per_s: float
    ttft_ms: float
    itl_ms: float
    num_requests: int
    prompt_tokens: int
    output_tokens: int
    more: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """JSON values, to six digits."""
        return {name: _short(value) for name, value in asdict(self).items()}

    def check(self, num_requests: int, prompt_tokens: int, output_tokens: int, tool: str) -> None:
        """Refuse a run that was not the load that was asked for.

        Raises:
            BenchError: requests or tokens are missing, or there are more.
        """
        asked = (num_requests, prompt_tokens, output_tokens)
        came = (self.num_requests, self.prompt_tokens, self.output_tokens)
        if asked != came:
            raise BenchError(
                f"{tool}: of {asked} requests, prompt and output tokens {came} came: not the same load"
            )


def our_reading(traces: Sequence[RequestTrace], itl: Itl) -> Reading:
    """Our figures, from raw times, in the definition of another tool.

    Raises:
        BenchError: a request failed.
    """
    failed = [trace for trace in traces if trace.error is not None]
    if failed:
        raise BenchError(f"{len(failed)} requests failed, the first: {failed[0].error}")
    requests, gaps_s = requests_of(traces, since="sent"), tokens_of(traces).gap_s.dropna()
    first_s = min(trace.sent_s for trace in traces)
    last_s = max(trace.arrivals[-1].time_s for trace in traces)
    whole = Window(first_s, nextafter(last_s, inf))
    means_s = requests.tpot_s.repeat(requests.num_tokens.astype(int) - 1)
    return Reading(
        output_tokens_per_s=throughput_of(traces, whole).output_tokens_per_s or 0.0,
        ttft_ms=1e3 * float(np.median(requests.ttft_s)),
        itl_ms=1e3 * float(np.median(gaps_s if itl == "all gaps" else means_s)),
        num_requests=len(traces),
        prompt_tokens=sum(trace.prompt_tokens for trace in traces),
        output_tokens=sum(trace.arrivals[-1].num_tokens for trace in traces),
        more={"duration_s": whole.length_s},
    )


def bench_serving_reading(text: str, output_lengths: Sequence[int]) -> Reading:
    """What `sglang.bench_serving --output-details` wrote: one line of JSON a run, here one run.

    Raises:
        BenchError: it is something else, or the requests were sent in another order than planned.
    """
    try:
        found = json.loads(text)
        failed = [error for error in found["errors"] if error]
        reading = Reading(
            output_tokens_per_s=float(found["output_throughput"]),
            ttft_ms=float(found["median_ttft_ms"]),
            itl_ms=float(found["median_itl_ms"]),
            num_requests=int(found["completed"]),
            prompt_tokens=int(found["total_input_tokens"]),
            output_tokens=int(found["total_output_tokens"]),
            more={
                "duration_s": found["duration"],
                "output_tokens_of_text": found["total_output_tokens_retokenized"],
                "concurrency": found["concurrency"],
            },
        )
        lengths = [int(each) for each in found["output_lens"]]
    except (ValueError, KeyError, TypeError) as error:
        raise BenchError(f"no output of sglang.bench_serving ({error!r}); see its log") from error
    if failed:
        raise BenchError(f"sglang.bench_serving: {len(failed)} requests failed, the first: {failed[0]}")
    if lengths != list(output_lengths):
        raise BenchError("sglang.bench_serving sent the requests in another order: its shuffle has changed")
    return reading


def guidellm_reading(text: str, due_s: Sequence[float] | None = None) -> Reading:
    """What `guidellm run` wrote as JSON: one benchmark, each request with its times.

    Args:
        text: its output.
        due_s: when requests were to be sent, in order; None for a closed loop.

    Raises:
        BenchError: it is something else.
    """
    try:
        found = json.loads(text)
        (run,) = found["benchmarks"]
        metrics, done = run["metrics"], run["requests"]["successful"]
        tokens = sum(int(each["output_tokens"]) for each in done)
        late = {} if due_s is None else {"sent_late_s": _late_s(done, due_s)}
        return Reading(
            output_tokens_per_s=float(metrics["output_tokens_per_second"]["successful"]["mean"]),
            ttft_ms=float(metrics["time_to_first_token_ms"]["successful"]["median"]),
            itl_ms=float(metrics["inter_token_latency_ms"]["successful"]["median"]),
            num_requests=len(done),
            prompt_tokens=sum(int(each["prompt_tokens"]) for each in done),
            output_tokens=tokens,
            more=late
            | {
                "version": found["metadata"]["guidellm_version"],
                "output_tokens_per_s_to_last_token": tokens / _span_s(done),
                "tokens_seen_as_text": sum(int(_times(each)["token_iterations"]) for each in done),
                "concurrency": metrics["request_concurrency"]["successful"]["mean"],
            },
        )
    except (ValueError, KeyError, TypeError) as error:
        raise BenchError(f"no output of guidellm ({error!r}); see its log") from error


def _span_s(done: Sequence[Mapping[str, Any]]) -> float:
    first_s = min(float(_times(each)["request_start"]) for each in done)
    return max(float(_times(each)["last_token_iteration"]) for each in done) - first_s


def _late_s(done: Sequence[Mapping[str, Any]], due_s: Sequence[float]) -> float:
    """How much later than due, beside the first request, the latest was sent."""
    if len(done) != len(due_s):
        raise BenchError(f"guidellm reports {len(done)} of {len(due_s)} requests; run it again")
    sent_s = sorted(float(_times(each)["request_start"]) for each in done)
    return max(sent - sent_s[0] - due for sent, due in zip(sent_s, due_s, strict=True))


def _times(request: Mapping[str, Any]) -> Mapping[str, Any]:
    times: Mapping[str, Any] = request["info"]["timings"]
    return times


def _short(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _short(each) for name, each in value.items()}
    return float(f"{value:.6g}") if isinstance(value, float) else value
