"""`bench capacity` on a server without a model: rates that are run, limits that are kept or not, going on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bench_checks.client_honesty import fake_server

from sglang_layered_lab.bench.capacity import Search
from sglang_layered_lab.bench.capacity_run import at_rate, attainment_of, run_capacity
from sglang_layered_lab.bench.record import BenchRecord
from sglang_layered_lab.bench.spec import BenchSpec, spec_from
from sglang_layered_lab.bench.spec_errors import SpecError


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with fake_server() as address:
        yield address


def spec_of(url: str, **more: Any) -> BenchSpec:
    lengths = {
        "prompt": {"distribution": "fixed", "tokens": 4},
        "output": {"distribution": "fixed", "tokens": 3},
    }
    values = {
        "run": {"name": "cap", "timeout_s": 60},
        "server": {"url": url},
        "load": {"arrivals": "poisson", "rate_per_s": 200.0, "num_requests": 8},
        "workload": {"vocab": [3, 1000], "lengths": lengths},
        "slo": {"ttft_ms": 60_000, "tbt_ms": 60_000},
    }
    return spec_from(values | more)


def test_rates_rise_while_limits_are_kept_and_are_run_once(url: str, tmp_path: Path) -> None:
    search = Search((200.0,), max_rate_rps=800.0)
    told: list[tuple[float, float]] = []
    found = run_capacity(spec_of(url), search, tmp_path, lambda *each: told.append(each))
    assert (found.status, found.rate_rps) == ("all rates met", 800.0)
    assert told == [(200.0, 1.0), (400.0, 1.0), (800.0, 1.0)]
    assert json.loads((tmp_path / "capacity.json").read_text())["rate_rps"] == 800.0
    records = sorted(tmp_path.glob("*.gz"))
    assert len(records) == 3
    before = [path.read_bytes() for path in records]
    run_capacity(spec_of(url), search, tmp_path, lambda *each: None)
    assert [path.read_bytes() for path in records] == before


def test_rates_fall_while_limits_are_missed(url: str, tmp_path: Path) -> None:
    strict = spec_of(url, slo={"ttft_ms": 0.001})
    found = run_capacity(strict, Search((200.0,), min_rate_rps=100.0), tmp_path, lambda *each: None)
    assert (found.status, found.rate_rps) == ("all rates missed", None)
    record = BenchRecord.read(tmp_path / "rate-100.json.gz")
    assert record.spec["load"]["rate_per_s"] == 100.0
    assert attainment_of(record) == 0.0


@pytest.mark.parametrize(
    ("changed", "keys"),
    [
        ({"slo": {}}, ("slo",)),
        ({"load": {"arrivals": "closed", "num_clients": 2, "num_requests": 4}}, ("load", "arrivals")),
    ],
)
def test_a_spec_without_a_rate_or_a_limit_is_refused(
    changed: dict[str, Any], keys: tuple[str, ...], tmp_path: Path
) -> None:
    with pytest.raises(SpecError) as caught:
        run_capacity(spec_of("http://127.0.0.1:1", **changed), Search((1.0,)), tmp_path, lambda *each: None)
    assert caught.value.keys == keys


def test_another_rate_is_another_run() -> None:
    spec = spec_of("http://127.0.0.1:1")
    other = at_rate(spec, 3.14159)
    assert other.load.rate_per_s == 3.14159 and other.run.name != spec.run.name
    assert other.workload == spec.workload
