"""Every spec that is shipped: a dry run accepts it, and what it then does is begun, against a fake server."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import tomllib
from bench_checks.client_honesty import fake_server
from click.testing import CliRunner

from sglang_layered_lab.bench.record import BenchRecord
from sglang_layered_lab.bench.run import run
from sglang_layered_lab.bench.spec import BenchSpec, ServerSpec, read_spec
from sglang_layered_lab.bench.spec_load import DistributionSpec, LengthsSpec, LoadSpec
from sglang_layered_lab.bench.sweep_spec import read_sweep
from sglang_layered_lab.cli.bench import bench

ROOT = Path(__file__).resolve().parents[2]
FILES = {path: tomllib.loads(path.read_text()) for path in sorted(ROOT.glob("scripts/**/*.toml"))}
SWEEPS = [path for path, values in FILES.items() if "sweep" in values]
RUNS = [path for path, values in FILES.items() if "run" in values]
SIMULATIONS = [
    path for path, values in FILES.items() if "simulation" in values
]  # test_cluster_specs.py runs them
FEW = 3


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with fake_server() as address:
        yield address


def quick_load(load: LoadSpec) -> LoadSpec:
    """The same kind of load, over in a moment."""
    background = load.background and replace(load.background, num_streams=1)
    load = replace(
        load, num_requests=FEW, duration_s=None, ramp_s=0.0, ramp_start_per_s=0.0, background=background
    )
    load = replace(load, warmup_s=0.0, cooldown_s=0.0)
    if load.trace is not None:
        return replace(load, trace=replace(load.trace, speed=1e5))
    return replace(load, num_clients=FEW) if load.is_closed else replace(load, rate_per_s=500.0)


def quick_lengths(lengths: LengthsSpec) -> LengthsSpec:
    """The same prompts with outputs of a few tokens."""
    if lengths.file is not None:
        return replace(lengths, output_scale=1e-3)
    return replace(lengths, output=DistributionSpec("fixed", tokens=2))


def quick(spec: BenchSpec, url: str) -> BenchSpec:
    """The spec with the fake server in the place of its own, which has no tokenizer and no topics."""
    workload = replace(
        spec.workload,
        vocab=spec.workload.vocab or (100, 900),
        inputs="ids",
        topics=False,
        lengths=quick_lengths(spec.workload.lengths),
    )
    return replace(
        spec,
        run=replace(spec.run, repetitions=1),
        server=ServerSpec(url=url),
        load=quick_load(spec.load),
        workload=workload,
    )


def test_every_shipped_file_is_one_of_these() -> None:
    assert len(RUNS) == 5 and len(SWEEPS) > 25
    others = {path.name for path in FILES} - {path.name for path in (*RUNS, *SWEEPS, *SIMULATIONS)}
    assert others == {"fast.toml"}  # of `reproduce --fast`, no spec by itself


@pytest.mark.parametrize("path", [*RUNS, *SWEEPS], ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_dry_run_accepts_it_and_it_starts(
    path: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    command = "run" if path in RUNS else "sweep"
    result = CliRunner().invoke(bench, [command, str(path), "--dry-run"])
    assert result.exit_code == 0, (result.output, result.exception)
    spec = read_spec(path) if path in RUNS else read_sweep(path).cells[-1].spec
    record = run(quick(spec, url), tmp_path / "o.json")
    assert [trace.error for trace in record.repetitions[0].traces] == [None] * FEW


def test_a_spec_with_a_url_runs_as_it_is(url: str, tmp_path: Path) -> None:
    text = (ROOT / "scripts" / "bench" / "cpu-replay.toml").read_text()
    assert 'url = "http://127.0.0.1:30000"' in text and "speed = 0.5" in text
    csv = ROOT / "scripts" / "bench" / "cpu-replay.csv"
    (tmp_path / csv.name).write_bytes(csv.read_bytes())
    path = tmp_path / "s.toml"
    path.write_text(text.replace("http://127.0.0.1:30000", url).replace("speed = 0.5", "speed = 500"))
    result = CliRunner().invoke(bench, ["run", str(path), "--out", str(tmp_path / "o.json")])
    assert result.exit_code == 0, (result.output, result.exception)
    [repetition] = BenchRecord.read(tmp_path / "o.json").repetitions
    assert len(repetition.traces) == 8
