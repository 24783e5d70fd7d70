"""Metrics of a run from its raw times. Pure. docs/metrics.md, section *Benchmark*, defines them with symbols.

Everything is computed from two frames: `tokens_of`, a row a token, and `requests_of`, a row a request. What
the server or a device knows (expert bytes, joules) is not here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import isfinite
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

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

    def holds(self, time_s: Any) -> Any:
        """Is the time inside, or which times of a series are? The start is, the end is not."""
        return (self.start_s <= time_s) & (time_s < self.end_s)


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
    def of(cls, values: Sequence[float] | FloatArray | pd.Series) -> "Distribution | None":
        """Describe the values that are not NaN; None when there are none."""
        sample = np.asarray(values, dtype=np.float64)
        sample = sample[~np.isnan(sample)]
        if not sample.size:
            return None
        p50, p90, p95, p99 = (float(each) for each in np.quantile(sample, (0.5, 0.9, 0.95, 0.99)))
        return cls(sample.size, float(sample.mean()), p50, p90, p95, p99, float(sample.max()))


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

    `latencies` in s are of the finished requests that were due in the window: `ttft`, `tbt` (of all gaps
    together), and of one value a request `worst_gap`, `tpot`, `e2e`, `stall`; what has no value is left out.
    `attainment` has the limits that are set (ttft, tbt, both); `goodput_rps` is None without limits.
    `decode_batch` is the time-weighted mean of the requests served together. `due` is `requests_of` of the
    requests that were due in the window.
    """

    num_due: int
    num_finished: int
    latencies: Mapping[str, Distribution]
    throughput: Throughput
    attainment: Mapping[str, float]
    goodput_rps: float | None
    decode_batch: float
    due: pd.DataFrame = field(repr=False, compare=False)

    @property
    def num_failed(self) -> int:
        """Requests that were due and did not end as asked."""
        return self.num_due - self.num_finished


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


def tokens_of(traces: Sequence[RequestTrace]) -> pd.DataFrame:
    """A row a token, request after request.

    Columns: `request`, the place of its request in `traces`; `time_s`, when the client had it; `gap_s` since
    the token before, NaN for a first one. Tokens that came together have no time between them.

    Raises:
        BenchError: a trace contradicts itself.
    """
    for trace in traces:
        check_trace(trace)
    rows = [
        (request, arrival.time_s, arrival.num_tokens)
        for request, trace in enumerate(traces)
        for arrival in trace.arrivals
    ]
    arrivals = pd.DataFrame(rows, columns=["request", "time_s", "num_tokens"], dtype=float)
    num_new = arrivals.groupby("request").num_tokens.diff().fillna(arrivals.num_tokens).astype(int)
    tokens = arrivals.loc[arrivals.index.repeat(num_new), ["request", "time_s"]].reset_index(drop=True)
    return tokens.assign(gap_s=tokens.groupby("request").time_s.diff())


def requests_of(
    traces: Sequence[RequestTrace],
    limits: SloLimits = SloLimits(),  # noqa: B008 - frozen
    since: Since = "due",
    tokens: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """A row a request, in the order of `traces`; NaN where a request has no such value.

    Columns: `due_s`, `sent_s`, `first_s`, `last_s` on the traces' clock; `prompt_tokens`, `num_tokens`;
    `is_failed`; `ttft_s` and `e2e_s` since it was due or sent, `worst_gap_s`, `tpot_s`, `stall_s` (what its
    gaps exceed the TBT limit by); and by the name of each limit that is set, whether it was met.

    Raises:
        BenchError: a trace contradicts itself.
    """
    tokens = tokens_of(traces) if tokens is None else tokens
    rows = [(each.due_s, each.sent_s, each.prompt_tokens, each.error is not None) for each in traces]
    requests = pd.DataFrame(rows, columns=["due_s", "sent_s", "prompt_tokens", "is_failed"])
    if limits.tbt_s is not None:
        excess_s = (tokens.gap_s - limits.tbt_s).clip(lower=0.0)
        requests["stall_s"] = excess_s.groupby(tokens.request).sum()
    by_request = tokens.groupby("request")
    times_s, gaps_s = by_request.time_s, by_request.gap_s
    requests = requests.assign(first_s=times_s.first(), last_s=times_s.last(), num_tokens=times_s.size())
    requests["ttft_s"] = requests.first_s - requests[f"{since}_s"]
    requests["e2e_s"] = requests.last_s - requests[f"{since}_s"]
    requests["worst_gap_s"] = gaps_s.max().fillna(0.0)
    num_gaps = (requests.num_tokens - 1).where(requests.num_tokens > 1)
    requests["tpot_s"] = (requests.e2e_s - requests.ttft_s) / num_gaps
    seen = zip(requests.is_failed, requests.ttft_s, requests.worst_gap_s, strict=True)
    met = [
        {name: kept and not failed for name, kept in limits.verdicts(RequestTiming(1, *timing)).items()}
        for failed, *timing in seen
    ]
    return requests.join(pd.DataFrame(met, requests.index))


def latencies_of(requests: pd.DataFrame, tokens: pd.DataFrame) -> dict[str, Distribution]:
    """Distributions in s by name, of these requests and their tokens; what has no value is left out."""
    names = ("ttft", "worst_gap", "tpot", "e2e", "stall")
    values = {name: requests[f"{name}_s"] for name in names if f"{name}_s" in requests}
    values["tbt"] = tokens.gap_s[tokens.request.isin(requests.index)]
    found = {name: Distribution.of(each) for name, each in values.items()}
    return {name: each for name, each in found.items() if each is not None}


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
    tokens = tokens_of(traces)
    requests = requests_of(traces, limits, since, tokens)
    due = requests[window.holds(requests.due_s)]
    if due.empty:
        raise BenchError(f"no request was due in the window [{window.start_s}, {window.end_s}): widen it")
    done = due[~due.is_failed]
    met = due[[name for name in ("ttft", "tbt", "both") if name in due]]
    ends_s = requests[["first_s", "last_s"]].clip(window.start_s, window.end_s)
    return RunMetrics(
        num_due=len(due),
        num_finished=len(done),
        latencies=latencies_of(done, tokens),
        throughput=_throughput(requests, tokens, window),
        attainment={name: float(met[name].mean()) for name in met},
        goodput_rps=float(met.all(axis=1).sum()) / window.length_s if len(met.columns) else None,
        decode_batch=float((ends_s.last_s - ends_s.first_s).sum()) / window.length_s,
        due=due,
    )


def throughput_of(traces: Sequence[RequestTrace], window: Window) -> Throughput:
    """Count tokens by their arrival, a prompt by its first token, a finished request by its last."""
    tokens = tokens_of(traces)
    return _throughput(requests_of(traces, tokens=tokens), tokens, window)


def _throughput(requests: pd.DataFrame, tokens: pd.DataFrame, window: Window) -> Throughput:
    ended = requests.last_s[~requests.is_failed]
    output_tokens = int(window.holds(tokens.time_s).sum())
    prompt_tokens = int(requests.prompt_tokens[window.holds(requests.first_s)].sum())
    counts = (
        (int(window.holds(ended).sum()), len(ended)),
        (output_tokens, len(tokens)),
        (output_tokens + prompt_tokens, len(tokens)),
    )
    return Throughput(*(None if total and not here else here / window.length_s for here, total in counts))
