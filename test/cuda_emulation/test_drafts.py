"""On SGLang's CUDA branches drafts beside a cohort are as often right as alone, and tokens equal.

Steps are as on a GPU: overlap as SGLang resolves it, drafts and their verification by its graphs, and the
prompt's group behind them on the same stream. Chains and trees of drafts, pages of one token and of several.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
from tiny_models import drafted_model

from workers import Workers

CHAIN = {"speculative_num_steps": 3, "speculative_eagle_topk": 1, "speculative_num_draft_tokens": 4}
TREE = {"speculative_num_draft_tokens": 4, "speculative_ngram_max_bfs_breadth": 2}
BRANCHES = {"speculative_num_steps": 3, "speculative_eagle_topk": 2, "speculative_num_draft_tokens": 6}
# name: kind of draft, attention, tokens of a page, SGLang's flags. Branches that share the last page of a
# request have copies of it each.
CASES: dict[str, tuple[str | None, str, int, dict[str, Any]]] = {
    "EAGLE, fa3": ("eagle", "fa3", 1, CHAIN),
    "EAGLE, fa3, trees": ("eagle", "fa3", 16, BRANCHES),
    "NGRAM, flashinfer, trees": (None, "flashinfer", 16, TREE),
    "EAGLE, triton": ("eagle", "triton", 64, CHAIN),
    "EAGLE, triton, trees": ("eagle", "triton", 1, BRANCHES),
}
FUSES = ("EAGLE, fa3, trees", "NGRAM, flashinfer, trees")
FAULTS = {
    "scheduler_does_not_wait_for_the_forward": r"req_to_token: write on schedule .* after read on forward",
}


@pytest.fixture(scope="module", params=CASES)
def found(request: pytest.FixtureRequest, workers: Workers) -> dict[str, Any]:
    kind, attention, page_size, flags = CASES[request.param]
    target, draft = drafted_model("qwen3_moe", kind)
    algorithm, faults = request.param.partition(",")[0], FAULTS if request.param == "EAGLE, fa3" else ()
    flags = {"attention_backend": attention, "page_size": page_size, "cuda_graph_bs_decode": [1, 4], **flags}
    flags["speculative_algorithm"] = algorithm
    if draft is not None:
        flags["speculative_draft_model_path"] = str(draft)
    case = {"kind": "drafts", "model": str(target), "flags": flags, "faults": [*faults]}
    case["fuses"] = request.param in FUSES
    result = workers.on("h100").ask(case)
    assert "error" not in result, result["error"] + "\n" + result["log"]
    return result


def test_tokens_and_right_drafts_are_those_of_requests_alone(found: dict[str, Any]) -> None:
    alone, beside = found["alone"], found["beside"]
    assert found["overlap"]
    assert beside["tokens"] == [tokens for run in alone for tokens in run["tokens"]]
    assert beside["drafts"] == [drafts for run in alone for drafts in run["drafts"]]
    num_verified, num_right = map(sum, zip(*beside["drafts"], strict=True))
    assert num_right > num_verified / 4, "drafts that are never right show nothing"


def test_steps_are_sequential_and_replay_what_was_captured_before_the_server_was_ready(
    found: dict[str, Any],
) -> None:
    beside = found["beside"]
    assert beside["layered_steps"].keys() == {"sequential"} and beside["layered_steps"]["sequential"] >= 4
    assert beside["num_replays"] > 0 and beside["mismatches"] == []
    assert found["num_captures"] == found["num_captures_when_ready"] > 0


def test_drafts_and_prompts_in_one_forward_give_the_same(found: dict[str, Any]) -> None:
    """Servers whose drafts no graph verifies run such steps."""
    if "fused" not in found:
        return
    fused, beside = found["fused"], found["beside"]
    assert fused["layered_steps"] == {"fused": beside["layered_steps"]["sequential"]}
    assert (fused["tokens"], fused["drafts"]) == (beside["tokens"], beside["drafts"])
    assert fused["mismatches"] == fused["violations"] == []


def test_what_streams_share_is_ordered(found: dict[str, Any]) -> None:
    assert found["beside"]["violations"] == []
    assert found["beside"]["num_accesses"] > 0


def test_a_missing_wait_is_found(found: dict[str, Any]) -> None:
    """The order of streams is told in steps with drafts, too."""
    for name, run in found["faults"].items():
        assert any(re.match(FAULTS[name], violation) for violation in run["violations"]), name
