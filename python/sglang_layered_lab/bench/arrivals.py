"""When requests are due. Pure: the load, a seed and a repetition in, due times out.

Points of a process of rate 1 are drawn first and then carried to the clock by the inverse of the cumulated
rate. So one seed gives the same points at every rate and with every ramp, and a longer run begins like the
shorter one.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import inf, nextafter, sqrt
from pathlib import Path

from sglang_layered_lab.bench.lengths import read_columns
from sglang_layered_lab.bench.spec_errors import SpecError
from sglang_layered_lab.bench.spec_keys import MOST_REQUESTS
from sglang_layered_lab.bench.spec_load import LoadSpec, TraceSpec
from sglang_layered_lab.bench.spec_seeds import Stream, generator

BLOCK = 1024  # points drawn at once


def time_of(load: LoadSpec, point: float) -> float:
    """Time in s at which an open load expects `point` requests: the inverse of its cumulated rate.

    The rate grows linearly from `ramp_start_per_s` to `rate_per_s` over `ramp_s` and then stays.
    """
    start, ramp_s = load.ramp_start_per_s, load.ramp_s
    assert load.rate_per_s is not None
    growth = (load.rate_per_s - start) / ramp_s if ramp_s else 0.0
    at_ramp_end = ramp_s * (start + growth * ramp_s / 2)
    if point >= at_ramp_end:
        return ramp_s + (point - at_ramp_end) / load.rate_per_s
    return 2 * point / (start + sqrt(start**2 + 2 * growth * point)) if point else 0.0


def arrival_times(
    load: LoadSpec, seed: int, *, repetition: int = 0, timestamps: Sequence[float] = ()
) -> tuple[float, ...]:
    """Due times in s since the run's zero, in order.

    Of a closed load: when each client sends its first request. `timestamps` is what `read_timestamps` gave
    for a load that replays a trace.

    Raises:
        SpecError: a trace has fewer rows than `load.num_requests`.
    """
    if load.is_closed:
        return _client_starts(load)
    if load.trace is not None:
        return _replayed(load, load.trace, timestamps)
    times: list[float] = []
    for point in _unit_points(load, seed, repetition):
        time_s = time_of(load, point)
        if len(times) == load.num_requests or time_s >= (inf if load.duration_s is None else load.duration_s):
            break
        times.append(time_s)
        if len(times) > MOST_REQUESTS:  # of a gamma far from its mean: the spec has looked at the mean
            raise SpecError("load.duration_s", f"more than {MOST_REQUESTS:,} requests are due; give less")
    return tuple(times)


def measuring_window(load: LoadSpec, times_s: Sequence[float]) -> tuple[float, float]:
    """Half-open range of due times in s whose requests are measured: without warm-up and cool-down.

    `times_s` are the due times, of a closed load the times of sending. The load ends at `duration_s`, or just
    after the last request when `num_requests` ends it before; a replayed trace ends with its last request.

    Raises:
        SpecError: nothing is left.
    """
    if not times_s:
        raise SpecError("load.duration_s", "no request is due in it; give more, or a higher rate")
    by_clock = load.duration_s is not None and load.trace is None and len(times_s) != load.num_requests
    end_s = load.duration_s if by_clock else nextafter(max(times_s), inf)
    assert end_s is not None
    window = (load.warmup_s, end_s - load.cooldown_s)
    if not any(window[0] <= each < window[1] for each in times_s):
        key = "load.duration_s" if by_clock else "load.num_requests"
        margins = f"after {load.warmup_s:g} s of warm-up and before {load.cooldown_s:g} s of cool-down"
        problem = f"the load ends after {end_s:.3g} s: no request is due {margins}; give more"
        raise SpecError(key, problem)
    return window


def read_timestamps(trace: TraceSpec, folder: Path) -> tuple[float, ...]:
    """Read a trace's column as it is written, in the trace's own unit.

    Raises:
        SpecError: the file, the column or a value is missing or bad, or times go back.
    """
    try:
        rows = read_columns(folder / trace.file, (trace.column,))
    except ValueError as error:
        raise SpecError("load.trace.file", f"{trace.file}: {error}") from error
    times = tuple(row[0] for row in rows)
    for number, (before, after) in enumerate(pairwise(times), start=2):
        if after < before:
            problem = f"{trace.file}: row {number} goes back in time; sort the rows"
            raise SpecError("load.trace.file", problem)
    return times


def _unit_points(load: LoadSpec, seed: int, repetition: int) -> Iterator[float]:
    """Points of a process of rate 1: the constant one from 0, the others from their first gap."""
    if load.arrivals == "constant":
        yield from map(float, range(2**53))
        return
    draws = generator(seed, Stream.ARRIVALS, repetition)
    shape = 1.0 if load.burstiness is None else load.burstiness
    point = 0.0
    while True:
        gaps = draws.standard_exponential(BLOCK) if shape == 1 else draws.standard_gamma(shape, BLOCK) / shape
        for gap in gaps.tolist():
            point += gap
            yield point


def _client_starts(load: LoadSpec) -> tuple[float, ...]:
    assert load.num_clients is not None
    num_clients = min(load.num_clients, load.num_requests or load.num_clients)
    return tuple(client * load.ramp_s / num_clients for client in range(num_clients))


def _replayed(load: LoadSpec, trace: TraceSpec, timestamps: Sequence[float]) -> tuple[float, ...]:
    if load.num_requests is not None and load.num_requests > len(timestamps):
        problem = f"{trace.file} has {len(timestamps)} rows; give that many or fewer"
        raise SpecError("load.num_requests", problem)
    scale = trace.unit_s / trace.speed
    times = [(each - timestamps[0]) * scale for each in timestamps[: load.num_requests]]
    return tuple(each for each in times if load.duration_s is None or each < load.duration_s)
