"""Snapshots of a server, from what its own code says of itself, and their differences by hand."""

import json
from dataclasses import replace
from typing import Any

import httpx
import pytest

from sglang_layered.energy.account import Anomalies, DeviceReading
from sglang_layered.energy.meter import EnergyReading, reading_record
from sglang_layered.errors import BenchError
from sglang_layered_lab.bench.snapshots import Snapshot, between, take
from test_top_fake_server import FakeServer

URL = "http://server"


def energy(joules: float, prompt: int, output: int, **anomalies: int) -> dict[str, Any]:
    device = DeviceReading("gpu0", "nvml-energy", joules, 0.1, 300.0, 90.0, None, Anomalies(**anomalies))
    tokens = {"prompt": prompt, "output": output}
    return {"tokens": tokens, "missing": []} | reading_record(EnergyReading(10.0, 0.05, (device,)))


def experts(prompt: int, decode: int, hybrid: int, broken: str | None = None) -> dict[str, Any]:
    return {
        "num_forwards": 3,
        "load_bytes": {"prompt": prompt, "decode": decode, "hybrid": hybrid},
        "broken": broken,
    }


def state(**layered: Any) -> dict[str, Any]:
    return {"last_gen_throughput": 1.0} | ({"layered": layered} if layered else {})


def taken(states: list[dict[str, Any]], page: str | None = None, status: int = 200) -> Snapshot:
    info = {"model_path": "/secret/model", "version": "0.5.17", "internal_states": states}

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/server_info":
            return httpx.Response(status, content=json.dumps(info))
        return httpx.Response(404) if page is None else httpx.Response(200, content=page)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(httpx, "request", lambda method, url, **_: answer(httpx.Request(method, url)))
        return take(URL)


def test_differences_by_phase_device_and_kind_over_replicas() -> None:
    before = taken(
        [
            state(expert_traffic=experts(100, 10, 1), energy=energy(50.0, 7, 2)),
            state(expert_traffic=experts(5, 6, 7)),
        ]
    )
    after = taken(
        [
            state(expert_traffic=experts(300, 15, 1), energy=energy(62.5, 9, 12)),
            state(expert_traffic=experts(6, 6, 17)),
        ]
    )
    usage = between(before, after)
    assert usage.expert_bytes == {"prompt": 201, "decode": 5, "hybrid": 10}
    assert usage.joules == {"gpu0": 12.5}
    assert usage.energy_tokens == {"prompt": 2, "output": 10}
    assert usage.counters is None
    assert usage.doubts == ()
    assert usage.window_s == after.time_s - before.time_s >= 0


def test_nothing_counted_is_none_and_not_zero() -> None:
    usage = between(taken([state()]), taken([state()]))
    assert (usage.expert_bytes, usage.joules, usage.energy_tokens) == (None, None, None)


def test_counters_are_flat_and_their_differences_exact() -> None:
    server = FakeServer()
    before = taken([state()], server.text())
    assert before.counters is not None
    server.metrics["expert_load_bytes_total"].labels(**server.ranks[0], phase="prompt").inc(4096)
    server.metrics["inter_token_latency_seconds"].labels(model_name="tiny", engine_type="unified").observe(
        0.25
    )
    after = taken([state()], server.text())
    usage = between(before, after)
    grown = {name: value for name, value in (usage.counters or {}).items() if value}
    rank = 'engine_type="unified",moe_ep_rank="0",phase="prompt",pp_rank="0",tp_rank="0"'
    assert grown == {
        f"expert_load_bytes_total{{{rank}}}": 4096.0,
        'inter_token_latency_seconds_sum{engine_type="unified"}': 0.25,
        'inter_token_latency_seconds_count{engine_type="unified"}': 1.0,
    }
    assert not any("running_reqs" in name or "_bucket" in name for name in before.counters)


def test_no_path_of_the_machine_is_kept() -> None:
    page = 'sglang:prompt_tokens_total{model_name="/secret/model"} 5\n'
    page = "# TYPE sglang:prompt_tokens_total counter\n" + page
    snapshot = taken([state(expert_traffic=experts(1, 1, 1))], page)
    assert snapshot.counters == {"prompt_tokens_total": 5.0}
    assert "/secret" not in repr(snapshot)


@pytest.mark.parametrize(
    ("after", "what"),
    [
        (
            [state(expert_traffic=experts(9, 10, 1), energy=energy(50.0, 7, 2))],
            "expert_bytes prompt went back",
        ),
        (
            [state(expert_traffic=experts(10, 10, 1), energy=energy(1.0, 7, 2))],
            "joules gpu0 went back from 50 to 1",
        ),
        (
            [state(expert_traffic=experts(10, 10, 1), energy=energy(50.0, 7, 1))],
            "energy_tokens output went back",
        ),
        ([state(energy=energy(50.0, 7, 2))], "expert_bytes prompt is gone"),
    ],
)
def test_a_total_that_went_back_says_that_the_server_was_started_anew(after: list[Any], what: str) -> None:
    before = taken([state(expert_traffic=experts(10, 10, 1), energy=energy(50.0, 7, 2))])
    with pytest.raises(BenchError, match=f"{what}.*started anew"):
        between(before, taken(after))


def test_a_counter_that_went_back_says_so_too() -> None:
    before = replace(taken([state()]), counters={"prompt_tokens_total": 5.0})
    with pytest.raises(BenchError, match=r"prompt_tokens_total went back from 5 to 4.*started anew"):
        between(before, replace(before, counters={"prompt_tokens_total": 4.0}))


def test_doubts_are_told() -> None:
    before = taken([state(expert_traffic=experts(1, 1, 1), energy=energy(5.0, 1, 1))])
    after = taken(
        [
            state(
                expert_traffic=experts(1, 1, 1, broken="no rows"), energy=energy(6.0, 1, 1, num_implausible=1)
            )
        ]
    )
    broken, trouble = between(before, after).doubts
    assert broken == "experts are no longer counted: no rows"
    assert "gpu0 was read with trouble" in trouble and "'num_implausible': 1" in trouble


def test_answers_that_are_not_sglang_are_refused() -> None:
    with pytest.raises(BenchError, match="status 500"):
        taken([state()], status=500)
    with pytest.raises(BenchError, match="does not answer as SGLang does"):
        taken([state()], "no metrics page { at all")
    with pytest.raises(BenchError, match="no server answers at"):
        take("http://127.0.0.1:1")
