"""What a server says of itself before and after a run, and the difference. It knows no clients.

Of `/server_info` only what this package adds is kept, of `/metrics` only what counts up: no settings and no
model name, so that no path of a machine gets into a record. docs/metrics.md defines all of it.
"""

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sglang_layered.errors import BenchError
from sglang_layered_lab.bench.server_state import ask
from sglang_layered_lab.watch.sample import Labels, parse

LEFT_OUT = ("_bucket", "_created")
PATH_LABELS = ("model_name",)  # SGLang's default is the model's path
ANEW = "the server was started anew during the run; repeat the run"


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


def take(url: str) -> Snapshot:
    """Ask the server at `url`.

    Raises:
        BenchError: it does not answer, or not as SGLang does.
    """
    remedy = "look at the server's log, or give an SGLang server"
    info = ask("GET", url, "/server_info", remedy=remedy)
    page = ask("GET", url, "/metrics", remedy=remedy, statuses=(200, 404))
    now_s = time.monotonic()
    try:
        layered = tuple(state.get("layered") or {} for state in info.json()["internal_states"])
        counters = None if page.status_code == 404 else _counters(page.text, now_s)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BenchError(f"{url} does not answer as SGLang does ({error!r}); {remedy}") from error
    return Snapshot(now_s, layered, counters)


def between(before: Snapshot, after: Snapshot) -> Usage:
    """What was used from one snapshot to the next.

    Raises:
        BenchError: a count went back or is gone, so that the server was started anew in between.
    """
    earlier, later = _totals(before), _totals(after)
    grown: dict[str, Any] = {what: _growth(f"{what} ", earlier[what], later[what]) or None for what in later}
    counters = _growth("", before.counters or {}, after.counters or {})
    return Usage(
        window_s=after.time_s - before.time_s,
        **grown,
        counters=None if after.counters is None else counters,
        doubts=tuple(_doubts(before, after)),
    )


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


def _totals(snapshot: Snapshot) -> dict[str, Counter[str]]:
    """Every total of `layered` as fields of `Usage`, summed over replicas."""
    fields = ("expert_bytes", "joules", "energy_tokens")
    sums: dict[str, Counter[str]] = {name: Counter() for name in fields}
    for state in snapshot.layered:
        sums["expert_bytes"].update((state.get("expert_traffic") or {}).get("load_bytes", {}))
        sums["energy_tokens"].update((state.get("energy") or {}).get("tokens", {}))
        sums["joules"].update({each["device"]: each["joules"] for each in _devices(state)})
    return sums


def _growth(what: str, before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    for name, value in before.items():
        now = after.get(name)
        if now is None or now < value:
            how = "is gone" if now is None else f"went back from {value:g} to {now:g}"
            raise BenchError(f"{what}{name} {how}: {ANEW}")
    return {name: value - before.get(name, 0) for name, value in after.items()}


def _devices(state: Mapping[str, Any]) -> list[dict[str, Any]]:
    return list((state.get("energy") or {}).get("devices", ()))


def _doubts(before: Snapshot, after: Snapshot) -> Iterator[str]:
    known = {each["device"]: each.get("anomalies") for state in before.layered for each in _devices(state)}
    for state in after.layered:
        if broken := (state.get("expert_traffic") or {}).get("broken"):
            yield f"experts are no longer counted: {broken}"
        for device in _devices(state):
            if device.get("lost"):
                yield f"energy of {device['device']} cannot be read: {device['lost'].get('why')}"
            if device.get("anomalies") != known.get(device["device"]):
                yield f"energy of {device['device']} was read with trouble: {device.get('anomalies')}"
