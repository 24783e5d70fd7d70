"""What docs/cluster.md says of the policies on a server is what the record holds."""

from __future__ import annotations

from pathlib import Path

import pytest

from sglang_layered_lab.bench.sweep_result import CellResult, SweepResult

REPO = Path(__file__).resolve().parents[2]
METRICS = ("ttft_mean", "ttft_p50", "ttft_p99")
ARMS = {"chunk-128": "chunks of 128"}


@pytest.fixture(scope="module")
def cells() -> dict[str, CellResult]:
    found = SweepResult.read(REPO / "results" / "auto" / "2026-12-01-2cores-policies")
    return {cell.arm: cell for cell in found.at({})}


def figures(cell: CellResult) -> list[float]:
    """Means of the rounds."""
    return [float(cell.rounds[metric].mean()) for metric in METRICS]


def over(cell: CellResult, other: CellResult) -> str:
    pairs = zip(figures(cell), figures(other), strict=True)
    return "" if cell is other else ", ".join(f"{mine / its:.2f}" for mine, its in pairs)


def test_the_table_of_the_policies_is_that_of_the_record(cells: dict[str, CellResult]) -> None:
    text = (REPO / "docs" / "cluster.md").read_text().replace("| |", "|  |")
    for arm, cell in cells.items():
        means = ", ".join(f"{value:.3f}" for value in figures(cell))
        others = " | ".join(over(cell, cells[other]) for other in ("chunk-128", "auto"))
        met = 100 * cell.rounds["attainment"].mean()
        row = f"| {ARMS.get(arm, f'`{arm}`')} | {means} | {others} | {met:.0f} % |"
        assert row in text, row


def test_tokens_a_second_are_alike(cells: dict[str, CellResult]) -> None:
    rates = [cell.rounds["whole_rate"].mean() for cell in cells.values()]
    assert max(rates) / min(rates) < 1.04
