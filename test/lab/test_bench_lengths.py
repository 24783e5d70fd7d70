"""TTFT of short and of long prompts apart, on a made-up sweep."""

from __future__ import annotations

import re
from pathlib import Path

from click.testing import CliRunner

from bench_sweeps import ARMS, write_sweep
from sglang_layered.cli.main import cli


def table(folder: Path, *options: str) -> list[list[str]]:
    done = CliRunner().invoke(cli, ["bench", "lengths", str(folder), *options])
    assert done.exit_code == 0, done.output
    return [re.split(r"\s*│\s*", line.strip("│ ")) for line in done.output.splitlines() if "│" in line]


def test_every_arm_has_a_row_for_each_kind_that_it_was_sent(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "s", num_background=4)
    lens = sorted(set(sweep.cells[0].due.prompt_tokens))
    rows = table(tmp_path / "s", "--short", str(lens[0]))
    kinds = ["short", "long"] if len(lens) > 1 else ["short"]
    assert [row[2] for row in rows] == kinds * len(sweep.cells)
    cell = sweep.cells[0]
    assert int(rows[0][3]) == (cell.due.prompt_tokens <= lens[0]).sum()
    short = cell.due[cell.due.prompt_tokens <= lens[0]]
    assert rows[0][5:8] == [f"{1e3 * short.ttft_s.quantile(share):.0f}" for share in (0.5, 0.9, 0.99)]
    worst = 1e3 * cell.rounds.beside_worst
    assert rows[0][8] == f"{worst.median():.0f} ({worst.min():.0f} to {worst.max():.0f})"
    assert len(ARMS) == len(sweep.cells)
