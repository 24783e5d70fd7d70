"""Servers that measure, with a replayed energy source; and what their `/metrics` say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
from energy_replay import environment_of
from prometheus_client.parser import text_string_to_metric_families

MEASURING = ("--enable-metrics", "--enable-expert-traffic-metrics", "--enable-energy-metrics")
WATTS = 100.0


def replayed_energy(folder: Path) -> dict[str, str]:
    """Environment of a server that takes its energy from a file: one device of WATTS."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "energy.json"
    samples = [{"at_s": 0, "watts": WATTS}]
    path.write_text(json.dumps({"devices": [{"device": "replayed", "samples": samples}]}))
    return environment_of(path)


def series(url: str, name: str) -> list[dict[str, Any]]:
    """Every series of `sglang:name`: its labels, and its `value`."""
    text = httpx.get(f"{url}/metrics", timeout=60, trust_env=False, follow_redirects=True).text
    return [
        {**sample.labels, "value": sample.value}
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == f"sglang:{name}"
    ]


def state(url: str) -> list[dict[str, Any]]:
    """What each replica's scheduler says of us in `/server_info`."""
    info = httpx.get(f"{url}/server_info", timeout=60, trust_env=False).json()
    return [internal["layered"] for internal in info["internal_states"]]
