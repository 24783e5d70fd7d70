"""The quickstart's command on real servers, from the check of this machine to the picture."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from servers import forked
from sglang_layered_lab.bench.sweep_result import SweepResult

pytestmark = pytest.mark.server


def test_the_command_serves_and_says_what_it_saw(tiny_qwen3_moe: Path, tmp_path: Path) -> None:
    command = [str(Path(sys.executable).with_name("sglang-layered")), "quickstart", "--repetitions", "1"]
    options = [
        "--mode",
        "layered",
        "--model-path",
        str(tiny_qwen3_moe),
        "--out",
        str(tmp_path),
        "--size",
        "half",
        "--page",
        str(tmp_path / "page.html"),
    ]
    done = subprocess.run(
        [*command, *options],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env=os.environ | forked(),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("QUICKSTART OK")
    [cell] = SweepResult.read(tmp_path).cells
    assert cell.mode == "layered" and len(cell.record.repetitions) == 1
    assert cell.record.made_with["server"]["memory_bytes"] > 2**28
    page = (tmp_path / "page.html").read_text()
    assert "Layered prefill" in page and "1024-token prompt" in page
    assert (tmp_path / "tokens.png").read_bytes().startswith(b"\x89PNG")
