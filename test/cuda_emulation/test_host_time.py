"""The measurement of host time runs, and a layered step launches few graphs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from workers import HERE, PROJECT, environment

GROUP_ROWS = 8448  # a cohort of 8192 tokens and its decode rows
GROUP_LAUNCHES = 6  # of three layers in two graphs each
MOST_LAUNCHES = 10  # beside them, of 48 layers in 16 groups; a graph a layer would be 47


def test_a_layered_step_launches_few_graphs(stub_driver: Path, tmp_path: Path) -> None:
    record = tmp_path / "record.json"
    options = ["--rows", "4", "--groups", "16", "--rounds", "2", "--group-rows", str(GROUP_ROWS)]
    options += ["--record", str(record)]
    command = [sys.executable, str(HERE / "host_time.py"), *options]
    subprocess.run(command, env=environment(stub_driver), cwd=PROJECT, check=True, timeout=600)
    rows = {row["kind"]: row for row in json.loads(record.read_text())["rows"]}
    assert rows["stock decode"]["launches"] == rows["layered loop, decode"]["launches"] == 1
    assert rows["stock mixed chunk"]["launches"] == 0
    assert 2 < rows["layered step"]["launches"] - GROUP_LAUNCHES <= MOST_LAUNCHES
    assert all(row["steps"] > 1 for row in rows.values())
