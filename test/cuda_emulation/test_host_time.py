"""The measurement of host time runs, and a layered step launches few graphs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from workers import HERE, PROJECT, environment

GROUP_ROWS = 8448  # a cohort of 8192 tokens and its decode rows
GROUP_LAUNCHES = 6  # of three layers in two graphs each
MOST_CALLS = 420  # of a layered step by graphs over a decode step, with SGLang's attention of three layers
MOST_LAUNCHES = 10  # beside them, of 48 layers in 16 groups; a graph a layer would be 47


def test_a_layered_step_launches_few_graphs(stub_driver: Path, tmp_path: Path) -> None:
    record = tmp_path / "record.json"
    options = ["--rows", "4", "--groups", "16", "--rounds", "2", "--group-rows", str(GROUP_ROWS)]
    options += ["--record", str(record)]
    command = [sys.executable, str(HERE / "host_time.py"), *options]
    subprocess.run(command, env=environment(stub_driver), cwd=PROJECT, check=True, timeout=600)
    found = json.loads(record.read_text())
    rows = {(row["kind"], row["by_graphs"]): row for row in found["rows"]}
    for by_graphs, expected in ((False, 0), (True, GROUP_LAUNCHES)):
        assert rows["stock decode", by_graphs]["launches"] == 1
        assert rows["layered loop, decode", by_graphs]["launches"] == 1
        assert rows["stock mixed chunk", by_graphs]["launches"] == 0
        assert 2 < rows["layered step", by_graphs]["launches"] - expected <= MOST_LAUNCHES
    assert all(row["steps"] > 1 for row in found["rows"])
    calls = {kind: each["calls"] for kind, each in found["profile"].items() if kind != "groups"}
    more = {kind: sum(each.values()) - sum(calls["decode"].values()) for kind, each in calls.items()}
    assert 0 < more["layered step by graphs"] <= MOST_CALLS
    assert more["layered step by graphs"] < more["layered step"], "an eager layer is some 500 calls"
