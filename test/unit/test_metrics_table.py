"""The table of metrics: sound, documented, and made into instruments as it says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sglang_layered.core.events import DropReason
from sglang_layered.metrics.instruments import Instruments
from sglang_layered.metrics.table import METRICS, NEEDS, PREFIX

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"


def test_names_follow_prometheus() -> None:
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    for metric in METRICS:
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert list(metric.buckets) == sorted(set(metric.buckets))


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_every_metric_stands_in_the_document_with_its_labels(metric) -> None:
    [row] = [line for line in DOCUMENT.read_text().splitlines() if line.startswith(f"| `{metric.name}` |")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1] == metric.kind
    assert cells[2] == ", ".join(f"`{label}`" for label in metric.labels)
    assert cells[3] == NEEDS[metric.needs]
    assert cells[4] == {"stage": "every stage", "first": "first stage"}[metric.writer]


PROGRAM = """
import json, sys
from prometheus_client import CollectorRegistry, generate_latest, multiprocess
from sglang_layered.core.events import DropReason
from sglang_layered.metrics.instruments import Instruments
made = Instruments({"model_name": "m"}, json.loads(sys.argv[1]), sys.argv[2] == "first")
made.add("layered_steps_total", kind="decode")
made.add("layered_steps_total", 2, kind="decode")
made.set("layered_parked_bytes", 7)
made.observe("layered_cohort_tokens", 300)
made.add("energy_joules_total", 5, device="gpu0", source="replay")
registry = CollectorRegistry()
multiprocess.MultiProcessCollector(registry)
print(generate_latest(registry).decode())
"""


def exported(tmp_path: Path, needs: list[str], writer: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(needs), writer],
        env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_several_processes_export_what_the_flags_and_the_rank_give(tmp_path: Path) -> None:
    text = exported(tmp_path, ["any", "layered", "energy"], "first")
    assert f'{PREFIX}layered_steps_total{{kind="decode",model_name="m"}} 3.0' in text
    assert f'{PREFIX}layered_parked_bytes{{model_name="m"}} 7.0' in text
    assert f'{PREFIX}layered_cohort_tokens_bucket{{le="512.0",model_name="m"}} 1.0' in text
    assert f'{PREFIX}energy_joules_total{{device="gpu0",model_name="m",source="replay"}} 5.0' in text
    assert "expert_load_bytes" not in text
    for reason in DropReason:
        assert f'{PREFIX}layered_dropped_cohorts_total{{model_name="m",reason="{reason}"}} 0.0' in text
    assert f'{PREFIX}layered_left_requests_total{{model_name="m"}} 0.0' in text
    text = exported(tmp_path, ["any", "layered", "energy"], "stage")
    assert f'{PREFIX}layered_steps_total{{kind="decode",model_name="m"}} 6.0' in text
    assert f'{PREFIX}energy_joules_total{{device="gpu0",model_name="m",source="replay"}} 5.0' in text


def test_without_metrics_nothing_happens() -> None:
    none = Instruments({})
    assert not none
    none.add("layered_steps_total", kind="decode")
    none.set("layered_parked_bytes", 1)
    none.observe("layered_cohort_tokens", 1)
    assert Instruments({}, [], True).add("layered_steps_total", kind="decode") is None
