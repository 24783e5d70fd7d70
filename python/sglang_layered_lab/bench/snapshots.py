"""What a server says of itself before and after a run, and the difference. It knows no clients.

Of `/server_info` only what this package adds is kept, of `/metrics` only what counts up: no settings and no
model name, so that no path of a machine gets into a record. docs/metrics.md defines all of it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from sglang_layered.errors import BenchError
from sglang_layered_lab.watch.sample import Labels, parse

TIMEOUT_S = 30.0
LEFT_OUT = ("_bucket", "_created")
PATH_LABELS = ("model_name",)  # SGLang's default is the model's path


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A server at `time_s` of the monotonic clock.

    `layered` has `internal_states[].layered`, one a data-parallel replica, {} where nothing is counted.
    `counters` has counters, and sums and counts of histograms, as `name{label="value",...}` without SGLang's
    prefix; None where the server runs without `--enable-metrics`.
    """

    time_s: float
    layered: tuple[Mapping[str, Any], ...]
    counters: Mapping[str, float] | None

    def to_json(self) -> dict[str, Any]:
        """JSON values, without the time: it says nothing on another machine."""
        counters = None if self.counters is None else dict(self.counters)
        return {"layered": [dict(state) for state in self.layered], "counters": counters}


@dataclass(frozen=True, slots=True)
class Usage:
    """What a server used between two snapshots; None for what it does not count.

    `expert_bytes` are load bytes by phase, summed over replicas; of each they are those of tensor rank 0 in
    the first pipeline stage. `joules` are by device. `energy_tokens` has `prompt` (computed ones) and
    `output`. `counters` are increases. `doubts` says in words why a figure may be too low: counting had
    ended, or a device could not be read.
    """

    window_s: float
    expert_bytes: Mapping[str, int] | None
    joules: Mapping[str, float] | None
    energy_tokens: Mapping[str, int] | None
    counters: Mapping[str, float] | None
    doubts: tuple[str, ...]


def take(url: str, client: httpx.Client | None = None) -> Snapshot:
    """Ask the server at `url`.

    Raises:
        BenchError: it does not answer, or not as SGLang does.
    """
    if client is None:
        with httpx.Client(timeout=TIMEOUT_S, trust_env=False) as own:
            return take(url, own)
    url = url.rstrip("/")
    info = _get(client, f"{url}/server_info")
    metrics = _get(client, f"{url}/metrics", may_miss=True)
    now_s = time.monotonic()
    try:
        assert info is not None
        layered = tuple(state.get("layered") or {} for state in info.json()["internal_states"])
        counters = None if metrics is None else _counters(metrics.text, now_s)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BenchError(
            f"{url} does not answer as SGLang does ({error!r}); give an SGLang server"
        ) from error
    return Snapshot(now_s, layered, counters)


def between(before: Snapshot, after: Snapshot) -> Usage:
    """What was used from one snapshot to the next.

    Raises:
        BenchError: a count went back or is gone, so that the server was started anew in between.
    """
    totals, later = dict(_totals(before)), dict(_totals(after))
    _check_growth(totals, later)
    _check_growth(before.counters or {}, after.counters or {})
    counters = None
    if after.counters is not None:
        known = before.counters or {}
        counters = {name: value - known.get(name, 0.0) for name, value in after.counters.items()}
    grown = {key: value - totals.get(key, 0) for key, value in later.items()}
    return Usage(
        window_s=after.time_s - before.time_s,
        expert_bytes=_part(grown, "expert load_bytes "),
        joules=_part(grown, "joules "),
        energy_tokens=_part(grown, "energy tokens "),
        counters=counters,
        doubts=tuple(_doubts(before, after)),
    )


def _get(client: httpx.Client, url: str, *, may_miss: bool = False) -> httpx.Response | None:
    try:
        answer = client.get(url)
    except httpx.HTTPError as error:
        raise BenchError(f"no answer from {url} ({error}); check that the server runs") from error
    if may_miss and answer.status_code == httpx.codes.NOT_FOUND:
        return None
    if answer.status_code != httpx.codes.OK:
        raise BenchError(f"{url} answers with status {answer.status_code}; look at the server's log")
    return answer


def _counters(text: str, now_s: float) -> dict[str, float]:
    sample = parse(text, now_s)
    return {
        _flat(name, labels): value
        for name in sorted(sample.cumulative)
        if not name.endswith(LEFT_OUT)
        for labels, value in sample.series[name].items()
    }


def _flat(name: str, labels: Labels) -> str:
    shown = ",".join(f'{label}="{value}"' for label, value in sorted(labels) if label not in PATH_LABELS)
    return f"{name}{{{shown}}}" if shown else name


def _totals(snapshot: Snapshot) -> Iterator[tuple[str, float]]:
    """Every total of `layered` by a name, summed over replicas."""
    sums: dict[str, float] = {}
    for state in snapshot.layered:
        experts, energy = state.get("expert_traffic") or {}, state.get("energy") or {}
        named = {
            f"expert load_bytes {phase}": value for phase, value in experts.get("load_bytes", {}).items()
        }
        named |= {f"energy tokens {kind}": value for kind, value in energy.get("tokens", {}).items()}
        named |= {f"joules {device['device']}": device["joules"] for device in energy.get("devices", ())}
        for name, value in named.items():
            sums[name] = sums.get(name, 0) + value
    yield from sums.items()


def _check_growth(before: Mapping[str, float], after: Mapping[str, float]) -> None:
    for name, value in before.items():
        now = after.get(name)
        if now is None or now < value:
            what = "is gone" if now is None else f"went back from {value:g} to {now:g}"
            raise BenchError(f"{name} {what}: the server was started anew during the run; repeat the run")


def _part(grown: Mapping[str, float], prefix: str) -> dict[str, Any] | None:
    part = {name.removeprefix(prefix): value for name, value in grown.items() if name.startswith(prefix)}
    return part or None


def _doubts(before: Snapshot, after: Snapshot) -> Iterator[str]:
    for state in after.layered:
        if broken := (state.get("expert_traffic") or {}).get("broken"):
            yield f"experts are no longer counted: {broken}"
        for device in (state.get("energy") or {}).get("devices", ()):
            if device.get("lost"):
                yield f"energy of {device['device']} cannot be read: {device['lost'].get('why')}"
            if device.get("anomalies") != _anomalies(before.layered, device["device"]):
                yield f"energy of {device['device']} was read with trouble: {device.get('anomalies')}"


def _anomalies(states: Sequence[Mapping[str, Any]], name: str) -> Any:
    found = [
        device.get("anomalies")
        for state in states
        for device in (state.get("energy") or {}).get("devices", ())
        if device["device"] == name
    ]
    return found[0] if found else None
