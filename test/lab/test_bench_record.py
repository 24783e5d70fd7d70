"""Records: what goes in comes out, a run is gone on with only as it was begun, tables show every figure."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from sglang_layered.errors import BenchError
from sglang_layered_lab.bench.metrics import Window
from sglang_layered_lab.bench.record import BenchRecord, Repetition, to_go_on
from sglang_layered_lab.bench.show import tables
from sglang_layered_lab.bench.spec import BenchSpec, read_spec
from sglang_layered_lab.bench.trace import Arrival, RequestTrace

SPEC = Path(__file__).resolve().parents[2] / "scripts" / "bench" / "cpu-poisson.toml"
MADE_WITH = {"versions": {"sglang": "0.5.17"}, "commit": "abc", "machine": {"cores": 2}}


@pytest.fixture
def spec() -> BenchSpec:
    return read_spec(SPEC)


def repetition(index: int) -> Repetition:
    good = RequestTrace("a", 1.0, 1.001, 10, 3, (Arrival(1.5, 1), Arrival(1.6, 3)))
    lost = RequestTrace("b", 2.0, 2.0, 10, 3, (Arrival(2.5, 1),), "the stream broke")
    client = {"core_share": 0.25, "max_open_streams": 2}
    for name in ("lateness", "lag"):
        client |= {f"{name}_p99_s": 0.001, f"{name}_max_s": 0.002}
    usage = {
        "expert_bytes": {"prompt": 10**9, "decode": 3 * 10**9},
        "joules": {"gpu0": 90.0},
        "energy_tokens": {"prompt": 20, "output": 10},
        "counters": None,
        "doubts": ["experts are no longer counted: a test"],
    }
    times = {"ready_s": -0.1, "last_token_s": 2.5}
    return Repetition(index, (good, lost), Window(0.0, 3.0), client, times, usage)


def test_a_record_is_read_back_as_it_was(spec: BenchSpec, tmp_path: Path) -> None:
    record = (
        BenchRecord(spec.to_json(), MADE_WITH).with_repetition(repetition(0)).with_repetition(repetition(1))
    )
    path = tmp_path / "deep" / "record.json"
    record.write(path)
    back = BenchRecord.read(path)
    assert [each.traces for each in back.repetitions] == [each.traces for each in record.repetitions]
    assert back.repetitions[1].metrics(back.limits) == record.repetitions[1].metrics(record.limits)
    assert (back.limits.ttft_s, back.limits.tbt_s) == (2.0, 0.5)
    assert list(path.parent.iterdir()) == [path]


def test_a_run_is_gone_on_with_where_nothing_else_changed(spec: BenchSpec, tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    assert to_go_on(path, spec, MADE_WITH).repetitions == ()
    to_go_on(path, spec, MADE_WITH).with_repetition(repetition(0)).write(path)
    assert len(to_go_on(path, spec, MADE_WITH).repetitions) == 1
    with pytest.raises(BenchError, match=r"differs in made_with: commit; .*--restart"):
        to_go_on(path, spec, MADE_WITH | {"commit": "other"})
    text = SPEC.read_text().replace("rate_per_s = 1.0", "rate_per_s = 2.0")
    (tmp_path / "other.toml").write_text(text)
    with pytest.raises(BenchError, match="differs in spec: load"):
        to_go_on(path, read_spec(tmp_path / "other.toml"), MADE_WITH)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": 1}', json.dumps({"format": 99})])
def test_what_is_no_record_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(BenchError, match=r"broken\.json: "):
        BenchRecord.read(path)


def test_tables_show_failures_doubts_and_the_client(spec: BenchSpec) -> None:
    record = BenchRecord(spec.to_json(), MADE_WITH).with_repetition(repetition(0))
    console = Console(record=True, width=100, file=io.StringIO())
    for table in tables(record):
        console.print(table)
    text = console.export_text()
    for words in ("2, 1, 1", "500.0, 500.0, 500.0", "1.000", "2.0000", "3.0000", "no longer counted", "0.25"):
        assert words in text
    assert "met both %" in text


def test_a_run_takes_more_repetitions_and_not_fewer_than_it_has(spec: BenchSpec, tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    begun = to_go_on(path, spec, MADE_WITH).with_repetition(repetition(0)).with_repetition(repetition(1))
    begun.write(path)

    def asking(repetitions: int) -> BenchSpec:
        return replace(spec, run=replace(spec.run, repetitions=repetitions))

    found = to_go_on(path, asking(7), MADE_WITH)
    assert (found.spec["run"]["repetitions"], len(found.repetitions)) == (7, 2)
    with pytest.raises(BenchError, match="differs in spec: run"):
        to_go_on(path, asking(1), MADE_WITH)
