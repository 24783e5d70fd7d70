"""On a GPU: experts are counted in CUDA graphs as without them, and NVML's joules fit its watts."""

from __future__ import annotations

import time
from pathlib import Path

import httpx
import pytest

from measured import MEASURING, series, state
from servers import LAYERED, serve
from workload import prompt

pytestmark = [pytest.mark.gpu, pytest.mark.server]

LENGTHS = (5, 300, 900)


def reports(url: str) -> list[list[int]]:
    """Expert bytes of each token of some requests, sent one by one so that every run makes the same steps."""
    found = []
    for length in LENGTHS:
        params = {"temperature": 0, "max_new_tokens": 9, "ignore_eos": True}
        params["custom_params"] = {"layered_report": True}
        body = {"input_ids": list(prompt(length, 70 + length)), "sampling_params": params}
        reply = httpx.post(f"{url}/generate", json=body, timeout=120, trust_env=False)
        found.append(reply.json()["meta_info"]["expert_bytes"])
    return found


@pytest.mark.parametrize("mode", [(), LAYERED], ids=["chunked", "layered"])
def test_graphs_count_as_eager_steps_do(tiny_qwen3_moe: Path, tmp_path: Path, mode: tuple[str, ...]) -> None:
    seen = {}
    for name, flags in (("graphs", ()), ("eager", ("--disable-cuda-graph",))):
        with serve(tmp_path / name, tiny_qwen3_moe, *mode, *MEASURING, *flags) as server:
            seen[name] = reports(server.base_url)
    assert seen["graphs"] == seen["eager"]
    assert all(len(amounts) == 9 and min(amounts) > 0 for amounts in seen["graphs"])


def test_joules_grow_as_the_watts_say(tiny_qwen3_moe: Path, tmp_path: Path) -> None:
    def joules() -> float:
        return sum(each["value"] for each in series(server.base_url, "energy_joules_total"))

    with serve(tmp_path, tiny_qwen3_moe, *LAYERED, *MEASURING) as server:
        before, started_s = joules(), time.monotonic()
        time.sleep(5)
        gained, elapsed_s = joules() - before, time.monotonic() - started_s
        devices = state(server.base_url)[0]["energy"]["devices"]
    watts = sum(device["watts"] for device in devices)
    assert {device["source"] for device in devices} <= {"nvml-energy", "nvml-power", "rapl"}
    assert 0.5 * watts * elapsed_s < gained < 2 * watts * elapsed_s
