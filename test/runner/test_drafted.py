"""Speculative decoding on a CPU, by SGLang's own loop: what tests of layered mode with drafts compare to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from own_process import found_by

SCRIPT = Path(__file__).with_name("drafted_run.py")
LEAST_LENGTH = 1.5  # tokens a step of a draft that matters
# Stock runs of NGRAM, of standalone drafts and of EAGLE3 beside plain KV are in models/test_speculative.py.
RUNS = {
    "qwen3_moe": ("none", "eagle", "eagle+overlap", "eagle+lost", "eagle-tree"),
    "deepseek_v3": ("none", "mtp", "mtp+overlap", "mtp+lost"),
    "gpt_oss": ("none", "eagle3", "eagle3+overlap", "eagle3+lost"),
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return found_by(SCRIPT, tmp_path_factory.mktemp("drafted") / "found.json", json.dumps(RUNS))


@pytest.fixture(params=RUNS)
def found(request: pytest.FixtureRequest, results: Any) -> Any:
    return results[request.param]


def counts(run: dict[str, Any]) -> tuple[int, int]:
    return run["num_verified"], run["num_right"]


def test_drafts_change_no_token_and_are_often_right(found: Any) -> None:
    expected = found["none"]["answers"]
    assert counts(found["none"]) == (0, 0)
    for name, run in found.items():
        assert run["answers"] == expected, name
        if name != "none" and "lost" not in name:
            assert run["acceptance_length"] > LEAST_LENGTH, name


def test_overlap_changes_no_draft(found: Any) -> None:
    pairs = [(name, name.removesuffix("+overlap")) for name in found if name.endswith("+overlap")]
    for overlapped, plain in pairs:
        if plain in found:
            assert counts(found[overlapped]) == counts(found[plain]), plain


def test_drafts_miss_the_hidden_states_of_a_prompt(found: Any) -> None:
    """Else a layered step could lose them, and no acceptance would tell."""
    for lost in (name for name in found if name.endswith("+lost")):
        assert counts(found[lost]) != counts(found[lost.removesuffix("+lost")]), lost
