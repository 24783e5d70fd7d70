"""On a GPU no kernel of a layered server leaves its memory, as compute-sanitizer sees it."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from same_answers import EXECUTIONS, Case, asks
from sglang_layered_lab.serving import ServerProcess, free_port, server_command
from workload import answers

pytestmark = [pytest.mark.gpu, pytest.mark.server]

SANITIZER = "compute-sanitizer"
BANNER = "========= COMPUTE-SANITIZER"
BAD_LINE = ("========= Invalid", "========= Program hit", "========= Error:", "========= Barrier error")
CHECKED = (SANITIZER, "--tool", "memcheck", "--target-processes", "all")


def bad_lines(text: str) -> list[str]:
    """Every error in a server's log; it must show that the checker ran."""
    assert BANNER in text, f"{SANITIZER} did not start"
    return [line for line in text.splitlines() if line.startswith(BAD_LINE)]


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_no_kernel_leaves_its_memory(execution: str, tmp_path: Path) -> None:
    if shutil.which(SANITIZER) is None:
        pytest.skip(reason=f"{SANITIZER} is not installed here")
    case, port, log = Case("tiny", "triton", 1), free_port(), tmp_path / "server.log"
    flags = [*case.flags(execution), "--disable-cuda-graph"]
    command = [*CHECKED, *server_command(sys.executable, case.folder, port, flags)]
    with ServerProcess(case.folder, log_path=log, port=port, command=command) as server:
        answers(server.base_url, asks())
    assert bad_lines(log.read_text(errors="replace")) == []
