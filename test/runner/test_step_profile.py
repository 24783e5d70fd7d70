"""A middle step of one cohort enters few of our files and functions, and so can be read in one sitting."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("step_profile.py")


@pytest.fixture(scope="module")
def entered() -> dict[str, dict[str, int]]:
    """Calls by file, of each server."""
    done = subprocess.run(
        [sys.executable, SCRIPT, "--each"], check=True, capture_output=True, text=True, timeout=600
    )
    calls: dict[str, dict[str, int]] = json.loads(done.stdout.splitlines()[-1])
    return calls


@pytest.mark.parametrize(("policy", "most_files", "most_calls"), [("rule", 20, 120), ("auto", 28, 200)])
def test_a_middle_step_enters_few_files_and_functions(
    entered: dict[str, dict[str, int]], policy: str, most_files: int, most_calls: int
) -> None:
    calls = entered[policy]
    assert len(calls) <= most_files and sum(calls.values()) <= most_calls, calls


def test_quantized_weights_cost_not_one_call_more(entered: dict[str, dict[str, int]]) -> None:
    assert entered["rule, fp8-block"] == entered["rule"]
