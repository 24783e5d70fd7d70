"""`bench run` on a real server: every token noted, metrics from the record, a second call runs nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from servers import Served
from sglang_layered_lab.bench import run as runner
from sglang_layered_lab.bench.record import BenchRecord
from sglang_layered_lab.bench.spec import BenchSpec, read_spec

pytestmark = pytest.mark.server

SPEC = """
[run]
name = "small"
repetitions = 2
seed = 3
timeout_s = 120

[server]
url = "{url}"

[load]
{load}

[workload]
vocab = [3, 1000]

[workload.lengths]
prompt = {{ distribution = "uniform", min_tokens = 5, max_tokens = 400 }}
output = {{ distribution = "uniform", min_tokens = 1, max_tokens = 12 }}

[slo]
ttft_ms = 60000
tbt_ms = 60000
"""
LOADS = {
    "open": 'arrivals = "poisson"\nrate_per_s = 8\nnum_requests = 10',
    "closed": 'arrivals = "closed"\nnum_clients = 3\nnum_requests = 9',
}


def spec_of(load: str, server: Served, folder: Path) -> BenchSpec:
    path = folder / "spec.toml"
    path.write_text(SPEC.format(url=server.url, load=LOADS[load]))
    return read_spec(path)


@pytest.mark.parametrize("load", LOADS)
def test_a_run_notes_every_token_and_is_not_run_twice(load: str, layered_moe: Served, tmp_path: Path) -> None:
    spec, out = spec_of(load, layered_moe, tmp_path), tmp_path / "record.json"
    runner.run(spec, out)
    record = BenchRecord.read(out)
    assert [each.index for each in record.repetitions] == [0, 1]
    for repetition in record.repetitions:
        assert len(repetition.traces) == spec.load.num_requests
        for trace in repetition.traces:
            assert trace.error is None
            assert trace.arrivals[-1].num_tokens == trace.max_output_tokens
        seen = repetition.metrics(record.limits)
        assert (seen.num_finished, seen.num_failed) == (len(repetition.traces), 0)
        assert seen.attainment == {"ttft": 1.0, "tbt": 1.0, "both": 1.0}
        if load == "closed":
            assert repetition.client["max_open_streams"] <= 3
    sizes = [[trace.prompt_tokens for trace in each.traces] for each in record.repetitions]
    assert sizes[0] != sizes[1]
    before = out.read_bytes()
    runner.run(spec, out)
    assert out.read_bytes() == before
