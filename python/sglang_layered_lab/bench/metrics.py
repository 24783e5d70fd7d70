"""Metrics of a run from its raw times. Pure. docs/metrics.md, section *Benchmark*, defines them with symbols.

What the server or a device knows (expert bytes, joules) is not here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from math import isfinite
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from sglang_layered.errors import BenchError
from sglang_layered.metrics.slo import RequestTiming, SloLimits
from sglang_layered_lab.bench.trace import RequestTrace

FloatArray = npt.NDArray[np.float64]
Since = Literal["due", "sent"]  # "due" counts waiting that a late client would hide; "sent" is others' way


@dataclass(frozen=True, slots=True)
class Window:
    """The measured part [start_s, end_s) of a run, on the clock of the traces."""

    start_s: float
    end_s: float

    def __post_init__(self) -> None:
        if not (isfinite(self.start_s) and isfinite(self.end_s) and self.start_s < self.end_s):
            raise BenchError(
                f"window [{self.start_s}, {self.end_s}) has no length: end_s must be after start_s"
            )

    @property
    def length_s(self) -> float:
        """Seconds between its ends."""
        return self.end_s - self.start_s

    def holds(self, time_s: float) -> bool:
        """Is the time inside? The start is, the end is not."""
        return self.start_s <= time_s < self.end_s


@dataclass(frozen=True, slots=True, eq=False)
class RequestMetrics:
    """One request with at least one token. `gaps_s` has a gap for every token after the first."""

    request_id: str
    ttft_s: float
    e2e_s: float
    gaps_s: FloatArray

    @classmethod
    def of(cls, trace: RequestTrace, since: Since = "due") -> RequestMetrics:
        """Measure a request from the time it was due, or from the time it was sent.

        Raises:
            BenchError: the trace has no token, or its times or counts run backwards.
        """
        check_trace(trace)
        if not trace.arrivals:
            raise BenchError(f"request {trace.request_id} has no token to measure")
        times_s = np.array([each.time_s for each in trace.arrivals])
        counts = np.array([each.num_tokens for each in trace.arrivals])
        gaps_s = np.zeros(counts[-1] - 1)
        gaps_s[counts[:-1] - 1] = np.diff(times_s)
        zero_s = trace.due_s if since == "due" else trace.sent_s
        return cls(trace.request_id, float(times_s[0] - zero_s), float(times_s[-1] - zero_s), gaps_s)

    @property
    def worst_gap_s(self) -> float:
        """Longest gap; 0 for a request of one token."""
        return float(self.gaps_s.max(initial=0.0))

    @property
    def tpot_s(self) -> float | None:
        """Mean gap; None for a request of one token."""
        return (self.e2e_s - self.ttft_s) / len(self.gaps_s) if len(self.gaps_s) else None

    def stall_s(self, tbt_limit_s: float) -> float:
        """Sum of what the gaps exceed the limit by."""
        return float(np.clip(self.gaps_s - tbt_limit_s, 0.0, None).sum())


@dataclass(frozen=True, slots=True)
class Distribution:
    """A sample's size, mean, quantiles (linear between neighbours) and greatest value."""

    count: int
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float

    @classmethod
    def of(cls, values: Iterable[float] | FloatArray) -> Distribution | None:
        """Describe the values; None when there are none."""
        sample = np.asarray(values if isinstance(values, np.ndarray) else list(values), dtype=np.float64)
        if not sample.size:
            return None
        p50, p90, p95, p99 = (float(each) for each in np.quantile(sample, (0.5, 0.9, 0.95, 0.99)))
        return cls(sample.size, float(sample.mean()), p50, p90, p95, p99, float(sample.max()))


@dataclass(frozen=True, slots=True)
class Batch:
    """Requests served together, in three definitions (docs/metrics.md); None where nothing is to average."""

    time_weighted: float
    token_weighted: float | None
    seen_by_arrivals: float | None


@dataclass(frozen=True, slots=True)
class Latencies:
    """Seconds, of finished requests; None where there is no value. `stall_s` needs a TBT limit.

    `tbt_s` is of all gaps together, everything else of one value a request.
    """

    ttft_s: Distribution | None
    tbt_s: Distribution | None
    worst_gap_s: Distribution | None
    tpot_s: Distribution | None
    e2e_s: Distribution | None
    stall_s: Distribution | None

    @classmethod
    def of(cls, requests: Sequence[RequestMetrics], tbt_limit_s: float | None) -> Latencies:
        """Describe the requests."""
        stalls_s = [] if tbt_limit_s is None else [each.stall_s(tbt_limit_s) for each in requests]
        return cls(
            ttft_s=Distribution.of(each.ttft_s for each in requests),
            tbt_s=Distribution.of(np.concatenate([np.zeros(0), *(each.gaps_s for each in requests)])),
            worst_gap_s=Distribution.of(each.worst_gap_s for each in requests),
            tpot_s=Distribution.of(each.tpot_s for each in requests if each.tpot_s is not None),
            e2e_s=Distribution.of(each.e2e_s for each in requests),
            stall_s=Distribution.of(stalls_s),
        )


@dataclass(frozen=True, slots=True)
class Throughput:
    """What came in the window, per second; of all requests, whenever they were due.

    None where nothing came in it and something came outside: then it is too short to tell.
    """

    requests_per_s: float | None
    output_tokens_per_s: float | None
    total_tokens_per_s: float | None


@dataclass(frozen=True, slots=True)
class RunMetrics:
    """A run in its window.

    `latencies` are of the finished requests that were due in the window, `lateness_s` (sent - due) of all of
    them. `attainment` has the limits that are set (ttft, tbt, both); `goodput_rps` is None without limits.
    """

    num_due: int
    num_finished: int
    num_failed: int
    latencies: Latencies
    lateness_s: Distribution | None
    throughput: Throughput
    attainment: dict[str, float]
    goodput_rps: float | None
    batch: Batch

    def to_json(self) -> dict[str, Any]:
        """JSON values, names as here."""
        return asdict(self)


def check_trace(trace: RequestTrace) -> None:
    """Refuse a trace that no clock can have seen."""
    where = f"request {trace.request_id}: arrivals"
    if trace.error is None and not trace.arrivals:
        raise BenchError(f"{where} are empty and error is not set; set error to the reason")
    if any(later.time_s < earlier.time_s for earlier, later in pairwise(trace.arrivals)):
        raise BenchError(f"{where} go back in time; note them on one monotonic clock")
    counts = [0, *(each.num_tokens for each in trace.arrivals)]
    if any(later <= earlier for earlier, later in pairwise(counts)):
        raise BenchError(f"{where} do not grow in num_tokens; note only arrivals that bring tokens")
    if trace.arrivals and trace.arrivals[0].time_s < trace.sent_s:
        raise BenchError(f"{where} begin before sent_s; note both on one clock")


def verdicts(trace: RequestTrace, limits: SloLimits, since: Since = "due") -> dict[str, bool]:
    """Which limits the request met; one that failed met none of them."""
    if trace.error is not None:
        return {name: False for name in limits.verdicts(RequestTiming())}
    seen = RequestMetrics.of(trace, since)
    timing = RequestTiming(num_tokens=1, ttft_s=seen.ttft_s, worst_gap_s=seen.worst_gap_s)
    return {str(name): met for name, met in limits.verdicts(timing).items()}


def measure(
    traces: Sequence[RequestTrace], window: Window, limits: SloLimits, since: Since = "due"
) -> RunMetrics:
    """Compute all metrics of a run.

    Args:
        traces: every request of the run, those of warm-up and cool-down too.
        window: the part that is measured.
        limits: what attainment, goodput and stall time are counted against.
        since: what TTFT and E2E begin with.

    Raises:
        BenchError: no request was due in the window, or a trace contradicts itself.
    """
    for trace in traces:
        check_trace(trace)
    due = [trace for trace in traces if window.holds(trace.due_s)]
    if not due:
        raise BenchError(f"no request was due in the window [{window.start_s}, {window.end_s}): widen it")
    done = [RequestMetrics.of(trace, since) for trace in due if trace.error is None]
    judged = [verdicts(trace, limits, since) for trace in due]
    num_good = sum(all(each.values()) for each in judged)
    return RunMetrics(
        num_due=len(due),
        num_finished=len(done),
        num_failed=len(due) - len(done),
        latencies=Latencies.of(done, limits.tbt_s),
        lateness_s=Distribution.of(trace.sent_s - trace.due_s for trace in due),
        throughput=throughput_of(traces, window),
        attainment={name: sum(each[name] for each in judged) / len(due) for name in judged[0]},
        goodput_rps=num_good / window.length_s if judged[0] else None,
        batch=batch_of(traces, window),
    )


def throughput_of(traces: Sequence[RequestTrace], window: Window) -> Throughput:
    """Count tokens by their arrival, a prompt by its first token, a finished request by its last."""
    output_tokens = prompt_tokens = num_ended = 0
    for trace in traces:
        counts = [0, *(each.num_tokens for each in trace.arrivals)]
        output_tokens += sum(
            later - earlier
            for each, (earlier, later) in zip(trace.arrivals, pairwise(counts), strict=True)
            if window.holds(each.time_s)
        )
        if trace.arrivals and window.holds(trace.arrivals[0].time_s):
            prompt_tokens += trace.prompt_tokens
        if trace.error is None and window.holds(trace.arrivals[-1].time_s):
            num_ended += 1
    is_ended, is_token = any(trace.error is None for trace in traces), any(trace.arrivals for trace in traces)
    sums = ((num_ended, is_ended), (output_tokens, is_token), (output_tokens + prompt_tokens, is_token))
    return Throughput(*(None if is_any and not each else each / window.length_s for each, is_any in sums))


def batch_of(traces: Sequence[RequestTrace], window: Window) -> Batch:
    """How many requests are served together; failed ones count until their last token."""
    seen = [trace.arrivals for trace in traces if trace.arrivals]
    firsts_s = np.sort([arrivals[0].time_s for arrivals in seen])
    lasts_s = np.sort([arrivals[-1].time_s for arrivals in seen])
    held_s = np.clip(lasts_s, window.start_s, window.end_s) - np.clip(firsts_s, window.start_s, window.end_s)
    later = [
        (after.time_s, after.num_tokens - before.num_tokens)
        for arrivals in seen
        for before, after in pairwise(arrivals)
        if window.holds(after.time_s) and after.time_s > arrivals[0].time_s
    ]
    return Batch(
        time_weighted=float(held_s.sum()) / window.length_s,
        token_weighted=_token_weighted(later, firsts_s, lasts_s),
        seen_by_arrivals=_seen_by_arrivals(traces, window),
    )


def _token_weighted(
    tokens: Sequence[tuple[float, int]], firsts_s: FloatArray, lasts_s: FloatArray
) -> float | None:
    """Mean over tokens (time, how many) of the requests with first < time <= last."""
    if not tokens:
        return None
    times_s, counts = np.array([time_s for time_s, _ in tokens]), np.array([count for _, count in tokens])
    decoding = np.searchsorted(firsts_s, times_s, "left") - np.searchsorted(lasts_s, times_s, "left")
    return float(np.average(decoding, weights=counts))


def _seen_by_arrivals(traces: Sequence[RequestTrace], window: Window) -> float | None:
    """Mean over the requests sent in the window of those sent by then whose last token was still to come."""
    sent_s = np.sort([trace.sent_s for trace in traces])
    ends_s = np.sort([trace.arrivals[-1].time_s if trace.arrivals else trace.sent_s for trace in traces])
    asked_s = sent_s[(sent_s >= window.start_s) & (sent_s < window.end_s)]
    if not len(asked_s):
        return None
    in_flight = np.searchsorted(sent_s, asked_s, "right") - np.searchsorted(ends_s, asked_s, "right")
    return float(in_flight.mean())
