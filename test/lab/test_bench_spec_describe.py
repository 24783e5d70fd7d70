"""What a dry run says of a spec."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rich.console import Console

from sglang_layered_lab.bench.arrivals import arrival_times, measuring_window
from sglang_layered_lab.bench.lengths import RequestSize, load_lengths
from sglang_layered_lab.bench.load import Load
from sglang_layered_lab.bench.spec import BenchSpec, ServerSpec, SloSpec
from sglang_layered_lab.bench.spec_describe import describe, outline
from sglang_layered_lab.bench.spec_load import LengthsSpec, LoadSpec, PrefixSpec, WorkloadSpec
from test_bench_workload import LENGTHS, PREFIXES, requests_of, spec_of, workload_of


def load_of(spec: BenchSpec) -> Load:
    """Its model is not looked at."""
    return Load(spec, load_lengths(spec.workload.lengths, spec.folder), ())


@pytest.mark.parametrize("prefixes", [None, PREFIXES])
def test_the_outline_counts_the_very_requests(prefixes: PrefixSpec | None) -> None:
    load = LoadSpec("poisson", rate_per_s=2.0, duration_s=60.0, warmup_s=10.0, cooldown_s=5.0)
    spec = spec_of(WorkloadSpec(LENGTHS, prefixes), load)
    drawn = outline(load_of(spec))
    times = arrival_times(load, 0)
    requests = requests_of(workload_of(spec.workload), range(len(times)))
    assert drawn.sizes == tuple(RequestSize(each.prompt_tokens, each.output_tokens) for each in requests)
    assert (len(drawn.sizes), drawn.last_due_s) == (len(times), times[-1])
    assert drawn.window_s == measuring_window(load, times) == (10.0, 55.0)
    assert drawn.num_measured == len([each for each in times if 10 <= each < 55])
    own = [
        each.prompt_tokens - min(100, each.prompt_tokens - 1) for each in requests if each.prefix is not None
    ]
    whole = [each.prompt_tokens for each in requests if each.prefix is not None]
    assert drawn.shared_tokens == sum(whole) - sum(own)
    assert (drawn.shared_tokens > 0) == (prefixes is not None)


def shown(spec: BenchSpec) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(describe(load_of(spec)))
    return " ".join(capture.get().replace("│", " ").split())


def test_a_dry_run_says_what_would_be_sent() -> None:
    load = LoadSpec("constant", rate_per_s=2.0, num_requests=8, warmup_s=1.0)
    lengths = LengthsSpec(file="cpu-replay.csv", order="file", max_total_tokens=1000)
    flags = ("--json-model-override-args", '{"a": [1, "[b]"]}')
    spec = replace(spec_of(WorkloadSpec(lengths), load), slo=SloSpec(ttft_ms=250.0))
    spec = replace(spec, server=ServerSpec(model="m", flags=flags, env={"A": "1"}))
    text = shown(spec)
    for part in (
        'model: m, flags: --json-model-override-args {"a": [1, "[b]"]}, env: A=1',
        "arrivals: constant, rate_per_s: 2.0, num_requests: 8",
        "8 each repetition",
        "last request due 3.5 s (cut off at 600 s)",
        "due from 1.0 s to 3.5 s: 6 requests",
        f"prompt tokens {320 + 96 + 64 + 512 + 128 + 768 + 200 + 320:,}, 0 of them in shared prefixes",
        f"output tokens {24 + 40 + 48 + 16 + 32 + 24 + 40 + 24:,}",
        "rows left out 1, above max_total_tokens",
        "limits TTFT at most 250 ms",
        "prompt 301 64 260 589 750 768",
    ):
        assert part in text, text


def test_a_closed_load_says_what_is_not_known() -> None:
    counted = shown(spec_of(WorkloadSpec(LENGTHS), LoadSpec("closed", num_clients=3, num_requests=20)))
    assert "arrivals: closed, num_clients: 3" in counted
    assert "20 each repetition" in counted and "last request due" not in counted
