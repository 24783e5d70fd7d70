"""On SGLang's CUDA branches drafts beside a cohort are as often right as alone, and tokens equal.

Steps are as on a GPU: overlap as SGLang resolves it, drafts and their verification by its graphs, and the
prompt's group behind them on the same stream. Chains and trees of drafts, pages of one token and of several.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from tiny_models import drafted_model, drafted_sparse_model

from workers import Workers

NUM_CHOSEN = 32  # tokens that a row attends to, of up to 324
CHAIN = {"speculative_num_steps": 3, "speculative_eagle_topk": 1, "speculative_num_draft_tokens": 4}
TREE = {"speculative_num_draft_tokens": 4, "speculative_ngram_max_bfs_breadth": 2}
LONG_CHAIN = {"speculative_num_steps": 5, "speculative_eagle_topk": 1, "speculative_num_draft_tokens": 6}
BRANCHES = {"speculative_num_steps": 3, "speculative_eagle_topk": 2, "speculative_num_draft_tokens": 6}
CHUNKS = {"chunked_prefill_size": 128}
# name: kind of draft or what a sparse model is made of, attention, tokens of a page, SGLang's flags. Branches
# that share the last page of a request have copies of it each.
CASES: dict[str, tuple[Any, str, int, dict[str, Any]]] = {
    "EAGLE, fa3": ("eagle", "fa3", 1, CHAIN),
    "EAGLE, fa3, trees": ("eagle", "fa3", 16, BRANCHES),
    "NGRAM, flashinfer, trees": (None, "flashinfer", 16, TREE),
    "EAGLE, triton": ("eagle", "triton", 64, CHAIN),
    "EAGLE, triton, trees": ("eagle", "triton", 1, BRANCHES),
    # DeepSeek-V3.2: each row of a draft chooses its tokens; prompts in three chunks.
    "EAGLE, dsa": ((NUM_CHOSEN, False, 1), "dsa", 64, CHUNKS | CHAIN),
    # GLM-5.2: all steps of a draft attend to what the verified step, or the prompt, chose for its last row.
    "EAGLE, dsa, shared choices": ((NUM_CHOSEN, True, 4), "dsa", 64, CHUNKS | LONG_CHAIN),
    # The same where prompts attend to all tokens, with expanded keys, and so do drafts.
    "EAGLE, dsa, all tokens": ((512, True, 4), "dsa", 64, LONG_CHAIN),
}
SPARSE = [name for name, (_, attention, *_) in CASES.items() if attention == "dsa"]
FUSES = ("EAGLE, fa3, trees", "NGRAM, flashinfer, trees")
FAULTS = {
    "EAGLE, fa3": "scheduler_does_not_wait_for_the_forward",
    "EAGLE, dsa, shared choices": "drafts_go_on_from_no_choice",
}
DROPS = {"EAGLE, dsa, shared choices": [1]}  # groups before which the long prompt starts again


@pytest.fixture(scope="module", params=CASES)
def found(request: pytest.FixtureRequest, workers: Workers) -> dict[str, Any]:
    return found_of(request.param, workers)


def models(name: str) -> tuple[Path, Path | None]:
    """Target and draft of a case; one with an MTP layer is both."""
    kind, attention, *_ = CASES[name]
    return (drafted_sparse_model(*kind), None) if attention == "dsa" else drafted_model("qwen3_moe", kind)


def found_of(name: str, workers: Workers) -> dict[str, Any]:
    """The result of a case; it runs once, however many tests ask."""
    (_, attention, page_size, flags), (target, draft) = CASES[name], models(name)
    algorithm, faults = name.partition(",")[0], [FAULTS[name]] if name in FAULTS else []
    flags = {"attention_backend": attention, "page_size": page_size, "cuda_graph_bs_decode": [1, 4], **flags}
    flags["speculative_algorithm"] = algorithm
    if draft is not None:
        flags["speculative_draft_model_path"] = str(draft)
    case = {"kind": "drafts", "model": str(target), "flags": flags}
    case |= {"faults": faults, "drops": DROPS.get(name, []), "fuses": name in FUSES}
    result = workers.on("h100").ask(case)
    assert "error" not in result, result["error"] + "\n" + result["log"]
    return result


def test_tokens_and_right_drafts_are_those_of_requests_alone(found: dict[str, Any]) -> None:
    alone, beside = found["alone"], found["beside"]
    assert found["overlap"]
    assert beside["tokens"] == [tokens for run in alone for tokens in run["tokens"]]
    for what in ("drafts", "guesses"):
        assert beside[what] == [seen for run in alone for seen in run[what]], what
    num_verified, num_right = map(sum, zip(*beside["drafts"], strict=True))
    assert num_right > num_verified / 4, "drafts that are never right show nothing"


@pytest.mark.parametrize("name", DROPS)
def test_a_prompt_that_starts_again_is_drafted_for_as_alone(workers: Workers, name: str) -> None:
    found = found_of(name, workers)
    assert len(found["dropped"]) == len(DROPS[name])
    for run in found["dropped"]:
        for what in ("tokens", "drafts", "guesses"):
            assert run[what] == found["beside"][what], what


@pytest.mark.parametrize("name", SPARSE)
def test_behind_an_indexer_tokens_are_those_without_drafts(workers: Workers, name: str) -> None:
    flags = {"attention_backend": "dsa", "page_size": 64} | CHUNKS
    case = {"kind": "side by side", "model": str(models(name)[0]), "flags": flags, "ways": []}
    plain = workers.on("h100").ask(case)
    assert "error" not in plain, plain["error"] + "\n" + plain["log"]
    drafted = [tokens for run in found_of(name, workers)["alone"] for tokens in run["tokens"]]
    assert len(plain["alone"]) == len(drafted)
    for expected, tokens in zip(plain["alone"], drafted, strict=True):
        num_both = min(len(expected), len(tokens))
        assert num_both >= 4 and tokens[:num_both] == expected[:num_both]


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


def test_a_missing_wait_is_found(workers: Workers) -> None:
    """The order of streams is told in steps with drafts, too."""
    [run] = found_of("EAGLE, fa3", workers)["faults"].values()
    expected = r"req_to_token: write on schedule .* after read on forward"
    assert any(re.match(expected, violation) for violation in run["violations"])


def test_a_lost_choice_is_found(workers: Workers) -> None:
    """By what the first draft behind the prompt guesses; tokens are those of the target."""
    found = found_of("EAGLE, dsa, shared choices", workers)
    [run] = found["faults"].values()
    assert run["tokens"] == found["beside"]["tokens"]
    assert run["guesses"] != found["beside"]["guesses"]
