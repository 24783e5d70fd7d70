"""Speculative decoding on a CPU, by SGLang's own loop: what tests of layered mode with drafts compare to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from own_process import found_by

SCRIPT = Path(__file__).with_name("drafted_run.py")
LEAST_LENGTH = 1.5  # tokens a step of a draft that matters
RUNS = {
    "qwen3_moe": ("none", "ngram", "eagle", "eagle+overlap", "eagle+lost", "eagle-tree", "eagle3"),
    "deepseek_v3": ("none", "mtp", "mtp+overlap", "mtp+lost", "standalone"),
    "gpt_oss": ("none", "ngram+overlap", "eagle3", "eagle3+overlap", "eagle3+lost"),
}


@pytest.fixture(scope="module", params=RUNS)
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("drafted") / "found.json"
    return found_by(SCRIPT, out, request.param, *RUNS[request.param])


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
