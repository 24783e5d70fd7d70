"""Settings that a running server is given: arms that differ in nothing else share one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from sglang_layered.errors import BenchError
from sglang_layered_lab.bench.server_pool import key_of
from sglang_layered_lab.bench.server_state import put_in_force
from sglang_layered_lab.bench.spec_errors import SpecError
from sglang_layered_lab.bench.sweep_spec import SweepSpec, sweep_from


def sweep(*arms: dict[str, Any]) -> SweepSpec:
    values = {
        "sweep": {"name": "s"},
        "server": {"model": "m"},
        "load": {"arrivals": "closed", "num_clients": 1, "num_requests": 1},
        "workload": {
            "lengths": {
                "prompt": {"distribution": "fixed", "tokens": 4},
                "output": {"distribution": "fixed", "tokens": 4},
            }
        },
        "arms": [{"mode": "layered", **each} for each in arms],
    }
    return sweep_from(values, Path("."))


def arm(name: str, **settings: float) -> dict[str, Any]:
    return {"name": name, "changes": {"server.settings": settings}}


def test_arms_that_differ_in_settings_share_a_server() -> None:
    spec = sweep(arm("two", layered_num_groups=2), arm("eight", layered_num_groups=8))
    assert len({key_of(cell.spec) for cell in spec.cells}) == 1
    assert [cell.spec.server.settings["layered_num_groups"] for cell in spec.cells] == [2, 8]
    other = sweep(arm("two", layered_num_groups=2), {**arm("flags", layered_num_groups=2), "flags": ["--x"]})
    assert len({key_of(cell.spec) for cell in other.cells}) == 2


def test_what_one_arm_sets_the_others_on_its_server_set_too() -> None:
    with pytest.raises(SpecError, match=r"one and two share a server.*layered_num_groups") as found:
        sweep(arm("two", layered_num_groups=2), arm("one", layered_cohort_tokens=64))
    assert "layered_cohort_tokens" in str(found.value)
    sweep({"name": "whole", "flags": ["--a"]}, arm("two", layered_num_groups=2))


def test_a_server_that_refuses_a_setting_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    answers = [[True], [True, False]]

    def post(_: str, url: str, **kwargs: Any) -> httpx.Response:
        asked.append((url, kwargs["json"]))
        return httpx.Response(200, json=answers.pop(0))

    monkeypatch.setattr(httpx, "request", post)
    put_in_force("http://x", {})
    put_in_force("http://x", {"layered_num_groups": 2})
    assert asked == [("http://x/set_internal_state", {"server_args": {"layered_num_groups": 2}})]
    with pytest.raises(BenchError, match=r"refused.*layered_num_groups"):
        put_in_force("http://x", {"layered_num_groups": 99})
