"""The same on SGLang 0.5.23: test_feature_off.py by the interpreter that has that release."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.server

REPO = Path(__file__).resolve().parents[2]
PYTHON = REPO / ".venv-0.5.23" / "bin" / "python"


@pytest.mark.skipif(
    not PYTHON.exists(), reason="SGLang 0.5.23 is not installed; scripts/setup.sh --sglang 0.5.23 does it"
)
def test_answers_and_steps_equal_those_of_0_5_23() -> None:
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(PYTHON), "-m", "pytest", "test/e2e/test_feature_off.py", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=REPO, env=env, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout
