"""`bench capacity`: the search of `capacity` with real runs and a record a rate, so that it can go on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from sglang_layered.writable import check_writable
from sglang_layered_lab.bench.capacity import Capacity, Search, find_capacity
from sglang_layered_lab.bench.record import BenchRecord, to_go_on
from sglang_layered_lab.bench.run import Load, Server, made_with, run_repetition, serving
from sglang_layered_lab.bench.spec import BenchSpec
from sglang_layered_lab.bench.spec_errors import SpecError

Tell = Callable[[float, float], None]  # rate in requests/s, attainment


def run_capacity(spec: BenchSpec, search: Search, folder: Path, tell: Tell) -> Capacity:
    """Search the capacity of a spec's server; its rate is the search's to choose.

    Writes a record a rate and `capacity.json` into the folder.

    Raises:
        SpecError: the load has no rate, or no limit is set.
        BenchError: a run fails, or the folder holds runs of another spec.
    """
    check(spec)
    Load.of(spec)
    check_writable(folder / "capacity.json")
    made = made_with()
    with serving(spec, folder / "server.log") as server:

        def attain(rate_rps: float) -> float:
            path, here = folder / f"rate-{rate_rps:.4g}.json.gz", at_rate(spec, rate_rps)
            share = attainment_of(_run(here, to_go_on(path, here, made), server, path))
            tell(rate_rps, share)
            return share

        found = find_capacity(search, attain)
    (folder / "capacity.json").write_text(json.dumps(asdict(found), indent=1) + "\n")
    return found


def check(spec: BenchSpec) -> None:
    """Refuse a spec whose capacity means nothing.

    Raises:
        SpecError: it names the key.
    """
    if spec.load.rate_per_s is None:
        raise SpecError(("load", "arrivals"), f"{spec.load.arrivals!r} have no rate; use 'poisson'")
    if spec.slo.ttft_ms is None and spec.slo.tbt_ms is None:
        raise SpecError(("slo",), "no limit is set; give ttft_ms, tbt_ms or both")


def at_rate(spec: BenchSpec, rate_rps: float) -> BenchSpec:
    """The spec at another rate."""
    run = replace(spec.run, name=f"{spec.run.name}-{rate_rps:.4g}")
    return replace(spec, run=run, load=replace(spec.load, rate_per_s=rate_rps))


def attainment_of(record: BenchRecord) -> float:
    """Share of all repetitions' requests that met every limit."""
    seen = [each.metrics(record.limits) for each in record.repetitions]
    num_met = sum(each.attainment.get("both", min(each.attainment.values())) * each.num_due for each in seen)
    return min(num_met / sum(each.num_due for each in seen), 1.0)


def _run(spec: BenchSpec, record: BenchRecord, server: Server, path: Path) -> BenchRecord:
    load = Load.of(spec)
    for index in range(len(record.repetitions), spec.run.repetitions):
        record = record.with_repetition(run_repetition(load, server, index))
        record.write(path)
    return record
