"""Proof of the client's honesty: what it measures against what a fake server wrote, on one machine's clock.

    PYTHONPATH=test python -m bench_checks.client_honesty --streams 256 --record FILE

The server runs in a process of its own. With two cores or more each of the two is held to one: else the
kernel now and then puts both on one, and a token waits for the end of the server's turn. Nothing is taken off
the errors: the server notes a write before it makes it, so its own write and the kernel's way are in them.
In lockstep all requests are sent before the first token comes: one that came during a step's 256 writes would
wait for their end before the server notes it, and that wait is the server's.

On a machine that has other work the errors are mostly turns of other processes. `--realtime` puts client and
server before those (SCHED_FIFO, which needs root or CAP_SYS_NICE); what is left is the client's own.
"""

from __future__ import annotations

import contextlib
import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import httpx
import numpy as np
import numpy.typing as npt
import orjson
from bench_checks.fake_server import Kind, Script
from bench_checks.other_load import OtherLoad

from sglang_layered.errors import BenchError
from sglang_layered_lab.bench import client_data
from sglang_layered_lab.bench.client import run_client
from sglang_layered_lab.bench.client_data import ClientResult, PlannedRequest
from sglang_layered_lab.bench.metrics import latencies_of, requests_of, tokens_of
from sglang_layered_lab.bench.trace import Arrival, RequestTrace

Times = npt.NDArray[np.float64]
Written = Mapping[str, Mapping[str, Any]]  # what `/written` answers

RAMP_S = 2.0
FIRST_S = 0.5
START_TIMEOUT_S = 60.0
METRICS = ("ttft", "tbt", "worst_gap", "tpot", "e2e")
PARTS = ("mean", "p50", "p90", "p99")
QUANTILES = {"median": 0.5, "p99": 0.99, "max": 1.0}
FAKE_SERVER = Path(__file__).with_name("fake_server.py")


def token_times_s(events: Sequence[tuple[float, int]]) -> Times:
    """Shape (tokens,): the time of each token, from pairs of time and running count."""
    times_s, counts = zip(*events, strict=True)
    return np.repeat(np.asarray(times_s, np.float64), np.diff(counts, prepend=0))


def errors_s(trace: RequestTrace, zero_s: float, written: Mapping[str, Any]) -> dict[str, Times]:
    """Measured minus known, by what is measured; `zero_s` is the run's zero on the clock of `written`.

    `sent`: from the client's sending to the server's first sight, which TTFT and E2E have in them. `gap` is
    an absolute value. With their tokens not all there the two cannot be compared.

    Raises:
        BenchError: the trace has not the tokens that were written.
    """
    seen = token_times_s([(each.time_s + zero_s, each.num_tokens) for each in trace.arrivals])
    known = token_times_s(written["events"])
    if len(seen) != len(known):
        raise BenchError(f"request {trace.request_id}: {len(seen)} tokens came of {len(known)} written")
    late = seen - known
    sent = np.asarray([written["received_s"] - (trace.sent_s + zero_s)])
    return {
        "arrival": late,
        "sent": sent,
        "ttft": late[:1] + sent,
        "gap": np.abs(np.diff(late)),
        "e2e": late[-1:] + sent,
    }


def summary_ms(result: ClientResult, written: Written) -> dict[str, dict[str, float]]:
    """Median, p99 and maximum over all requests, or over all tokens, in milliseconds."""
    each = [
        errors_s(trace, result.times.zero_monotonic_s, written[trace.request_id]) for trace in result.traces
    ]
    joined = {name: np.concatenate([errors[name] for errors in each]) * 1e3 for name in each[0]}
    return {
        name: {label: round(float(np.quantile(values, part)), 4) for label, part in QUANTILES.items()}
        for name, values in joined.items()
    }


def metrics_ms(result: ClientResult, written: Written) -> dict[str, dict[str, float]]:
    """Each latency metric of the run less the same metric of the known times, in milliseconds.

    The known times start where the server saw a request: the way there is an error of TTFT and E2E.
    """
    zero_s = result.times.zero_monotonic_s
    known = [_known(trace, zero_s, written[trace.request_id]) for trace in result.traces]
    sides = [
        latencies_of(requests_of(traces, since="sent"), tokens_of(traces))
        for traces in (result.traces, known)
    ]
    found: dict[str, dict[str, float]] = {}
    for name in METRICS:
        measured, true = (side[name] for side in sides)
        found[name] = {
            part: round(1e3 * (getattr(measured, part) - getattr(true, part)), 4) for part in PARTS
        }
    return found


def _known(trace: RequestTrace, zero_s: float, written: Mapping[str, Any]) -> RequestTrace:
    """The request as the server knows it, on the run's clock."""
    received_s = written["received_s"] - zero_s
    arrivals = tuple(Arrival(time_s - zero_s, count) for time_s, count in written["events"])
    return replace(trace, due_s=received_s, sent_s=received_s, arrivals=arrivals)


def requests(num_streams: int, num_tokens: int, prompt_tokens: int, script: Script) -> list[PlannedRequest]:
    """So many requests, evenly over the ramp, each with a seed of its own."""
    prompt = list(range(1000, 1000 + prompt_tokens))
    return [
        PlannedRequest(
            f"stream-{index}",
            RAMP_S * index / num_streams,
            prompt,
            num_tokens,
            Script(**(asdict(script) | {"seed": index})).sampling(),
        )
        for index in range(num_streams)
    ]


@contextlib.contextmanager
def before_others(realtime: bool) -> Iterator[None]:
    """Where asked for, this process and those that it starts meanwhile run before all ordinary ones.

    Raises:
        BenchError: the system does not allow it.
    """
    if not realtime:
        yield
        return
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except PermissionError as error:
        raise BenchError(f"--realtime: {error}; run it as root or with CAP_SYS_NICE") from error
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


@contextlib.contextmanager
def fake_server(core: int | None = None) -> Iterator[str]:
    """A fake server in its own process, on core `core` if given; its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen([sys.executable, str(FAKE_SERVER), str(port)])
    try:
        if core is not None:
            os.sched_setaffinity(server.pid, {core})
        _await(server, f"http://127.0.0.1:{port}")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def _await(server: subprocess.Popen[bytes], url: str) -> None:
    end_s = time.monotonic() + START_TIMEOUT_S
    while server.poll() is None and time.monotonic() < end_s:
        with contextlib.suppress(httpx.HTTPError):
            httpx.get(f"{url}/v1/models", trust_env=False)
            return
        time.sleep(0.05)
    raise BenchError("the fake server did not start; its own output says why")


def written_at(url: str) -> Written:
    """What the server at `url` wrote, by request."""
    answer: Written = orjson.loads(httpx.get(f"{url}/written", trust_env=False, timeout=60.0).content)
    return answer


def measure(planned: Sequence[PlannedRequest], timeout_s: float) -> dict[str, Any]:
    """One run, as JSON values."""
    cores = sorted(os.sched_getaffinity(0))
    pinned = len(cores) > 1
    load_before = os.getloadavg()
    with fake_server(cores[0] if pinned else None) as url:
        if pinned:
            os.sched_setaffinity(0, {cores[1]})
        others = OtherLoad()
        try:
            result = run_client(url, planned, timeout_s=timeout_s)
        finally:
            os.sched_setaffinity(0, set(cores))
        others_cores = others.cores()
        failed = [trace.error for trace in result.traces if trace.error is not None]
        if failed:
            raise BenchError(f"{len(failed)} requests failed, the first: {failed[0]}")
        written = written_at(url)
        errors, metrics = summary_ms(result, written), metrics_ms(result, written)
    span_s = (result.times.last_token_s or 0.0) - min(trace.sent_s for trace in result.traces)
    num_tokens = sum(trace.arrivals[-1].num_tokens for trace in result.traces)
    return {
        "tokens": num_tokens,
        "tokens_per_s": round(num_tokens / span_s, 1),
        "client": client_data.rounded(result.report),
        "errors_ms": errors,
        "metrics_off_ms": metrics,
        "a_core_each": pinned,
        "others_cores": round(others_cores, 3),
        "load_before": load_before,
        "load_after": os.getloadavg(),
    }


def _machine() -> dict[str, Any]:
    packages = ("aiohttp", "uvloop", "orjson")
    return {
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
    }


def _show(kind: str, run: Mapping[str, Any]) -> None:
    client = run["client"]
    click.echo(f"{kind}: {client['max_open_streams']} streams, {run['tokens_per_s']:.0f} tokens/s")
    click.echo(f"  client {client['core_share']:.2f} of a core, others {run['others_cores']:.2f} cores")
    click.echo(f"  loop lag p99 {1e3 * client['lag_p99_s']:.2f} ms")
    for name, values in (*run["errors_ms"].items(), *_titled(run["metrics_off_ms"])):
        click.echo(f"  {name:16}" + "".join(f"  {label} {value:8.3f} ms" for label, value in values.items()))


def _titled(metrics: Mapping[str, Mapping[str, float]]) -> Iterator[tuple[str, Mapping[str, float]]]:
    for name, values in metrics.items():
        yield f"metric {name}", values


@click.command()
@click.option("--streams", default=256, show_default=True, help="Streams open at once.")
@click.option("--tokens", default=400, show_default=True, help="Tokens of each.")
@click.option("--rate", default=50.0, show_default=True, help="Tokens per second of each.")
@click.option("--prompt-tokens", default=512, show_default=True, help="Token ids in each prompt.")
@click.option("--realtime", is_flag=True, help="Run before all other processes of the machine.")
@click.option(
    "--record", type=click.Path(dir_okay=False, path_type=Path), help="File to write the record to."
)
def main(
    streams: int, tokens: int, rate: float, prompt_tokens: int, realtime: bool, record: Path | None
) -> None:
    """Print how far the client's times are from those of a fake server, in both kinds of script."""
    asked = {"streams": streams, "tokens": tokens, "rate": rate, "prompt_tokens": prompt_tokens}
    asked["realtime"] = realtime
    document: dict[str, Any] = {"asked": asked, "machine": _machine(), "runs": {}}
    kinds: tuple[Kind, ...] = ("scattered", "lockstep")
    for kind in kinds:
        first_s = FIRST_S + (RAMP_S if kind == "lockstep" else 0.0)
        script = Script(kind=kind, first_s=first_s, gap_s=1.0 / rate)
        planned = requests(streams, tokens, prompt_tokens, script)
        with before_others(realtime):
            run = measure(planned, timeout_s=10 * RAMP_S + 3 * tokens / rate)
        document["runs"][kind] = run
        _show(kind, run)
    if record is not None:
        record.write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))


if __name__ == "__main__":
    main()
