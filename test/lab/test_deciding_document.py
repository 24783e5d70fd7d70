"""What docs/adaptive.md says deciding costs is what the records of `scripts/bench-scheduler` hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]


def text() -> str:
    return " ".join((REPO / "docs" / "adaptive.md").read_text().split())


def scheduler_cost(name: str) -> dict[str, dict[str, float]]:
    record = json.loads((REPO / "results" / "scheduler-cost" / f"{name}.json").read_text())
    summary: dict[str, dict[str, float]] = record["summary"]
    return summary


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (
            "2026-11-22-2cores",
            "takes {deciding:.3f} ms of CPU a step at 256 running requests and learning {learning:.3f} ms,"
            " medians, where a decode step of SGLang's scheduler takes {stock:.1f} ms",
        ),
        ("2026-11-22-2cores-slower", "runs {deciding:.3f} and {learning:.3f} beside {stock:.1f} ms"),
        (
            "2026-11-28-2cores",
            "takes {stock:.1f} ms, deciding takes {deciding:.3f} ms and learning {learning:.3f} ms",
        ),
        ("2026-11-28-2cores-later", "later run {deciding:.3f} and {learning:.3f} beside {stock:.1f} ms"),
    ],
)
def test_the_cost_of_deciding_is_that_of_its_records(record: str, said: str) -> None:
    medians = {part: row["median_ms"] for part, row in scheduler_cost(record).items()}
    assert said.format(**medians) in text()


def test_the_cost_of_admitting_is_that_of_its_records() -> None:
    names = ("2026-11-22-2cores", "2026-11-22-2cores-slower")
    admitting = [scheduler_cost(name)["admitting"]["q3_ms"] for name in names]
    assert "{:.2f} and {:.2f} ms (upper quartiles)".format(*admitting) in text()
