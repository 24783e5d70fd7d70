"""The arithmetic of the proof by hand, and the command on a few streams. Its figures are no test's."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import orjson
import pytest
from bench_checks.client_honesty import errors_s, main, metrics_ms, token_times_s
from bench_checks.fake_server import Script
from click.testing import CliRunner

from sglang_layered.errors import BenchError
from sglang_layered_lab.bench.trace import Arrival, RequestTrace

ZERO_S = 100.0


def trace(*arrivals: tuple[float, int]) -> RequestTrace:
    return RequestTrace("r", 0.5, 1.0, 3, 4, tuple(Arrival(*each) for each in arrivals))


def test_tokens_that_come_together_have_one_time() -> None:
    assert token_times_s([(1.0, 1), (2.0, 4), (3.0, 5)]).tolist() == [1.0, 2.0, 2.0, 2.0, 3.0]


def test_errors_by_hand() -> None:
    """Written at 102, 103, 104 and 104 of the server's clock; noted 0.25, 0.5, 0.125 and 0.125 later."""
    written = {"received_s": 101.5, "events": [(102.0, 1), (103.0, 2), (104.0, 4)]}
    errors = errors_s(trace((2.25, 1), (3.5, 2), (4.125, 4)), ZERO_S, written)
    assert errors["arrival"].tolist() == [0.25, 0.5, 0.125, 0.125]
    assert errors["sent"].tolist() == [0.5]  # sent at 101
    assert errors["ttft"].tolist() == [1.25 - 0.5]
    assert errors["gap"].tolist() == [0.25, 0.375, 0.0]
    assert errors["e2e"].tolist() == [3.125 - 2.5]


def test_metrics_of_both_sides_are_subtracted() -> None:
    """TTFT 1.25 s measured, 0.5 s known; E2E 3.125 s and 2.5 s; gaps 1.25, 0.625, 0 and 1, 1, 0."""
    seen = trace((2.25, 1), (3.5, 2), (4.125, 4))
    result = SimpleNamespace(traces=[seen], times=SimpleNamespace(zero_monotonic_s=ZERO_S))
    written = {"r": {"received_s": 101.5, "events": [(102.0, 1), (103.0, 2), (104.0, 4)]}}
    off = metrics_ms(result, written)  # type: ignore[arg-type]
    assert off["ttft"]["mean"] == off["ttft"]["p99"] == 750.0
    assert off["e2e"]["p50"] == 625.0
    assert off["tbt"]["p50"] == pytest.approx(1e3 * (0.625 - 1.0))
    assert off["worst_gap"]["mean"] == 250.0


def test_missing_tokens_cannot_be_compared() -> None:
    with pytest.raises(BenchError, match="1 tokens came of 2"):
        errors_s(trace((2.0, 1)), ZERO_S, {"received_s": 101.0, "events": [(101.5, 1), (102.0, 2)]})


def test_scattered_times_come_from_the_seed_and_keep_their_bounds() -> None:
    script = Script(seed=3, first_s=1.0, gap_s=0.5)
    times_s = script.times_s(10.0, 50)
    assert times_s == script.times_s(10.0, 50) != Script(seed=4, first_s=1.0, gap_s=0.5).times_s(10.0, 50)
    assert 11.0 <= times_s[0] < 12.0
    gaps_s = np.diff(times_s)
    assert len(gaps_s) == 49 and gaps_s.min() >= 0.25 and gaps_s.max() < 0.75


def test_lockstep_times_are_the_same_for_all() -> None:
    script = Script(kind="lockstep", first_s=1.0, gap_s=0.5)
    assert script.times_s(10.1, 3) == script.times_s(10.4, 3) == [11.5, 12.0, 12.5]


def test_the_command_writes_a_record(tmp_path: Path) -> None:
    record = tmp_path / "record.json"
    asked = ["--streams", "4", "--tokens", "5", "--rate", "50", "--record", str(record)]
    done = CliRunner().invoke(main, asked, catch_exceptions=False)
    assert done.exit_code == 0
    runs = orjson.loads(record.read_bytes())["runs"]
    assert set(runs) == {"scattered", "lockstep"}
    for run in runs.values():
        assert run["tokens"] == 20
        assert run["client"]["max_open_streams"] <= 4
        assert all(errors["median"] <= errors["p99"] <= errors["max"] for errors in run["errors_ms"].values())
        assert set(run["metrics_off_ms"]) == {"ttft", "tbt", "worst_gap", "tpot", "e2e"}
        assert run["metrics_off_ms"]["ttft"]["mean"] > 0  # the way to the server is in it
        assert run["errors_ms"]["arrival"]["median"] >= 0 and run["errors_ms"]["sent"]["median"] > 0
