"""Speculative decoding beside cohorts: tokens as without drafts, and drafts as often right as in stock."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from own_process import found_by

PLAIN = (
    *("NGRAM", "STANDALONE", "EAGLE", "EAGLE of MTP", "EAGLE of GLM's MTP"),
    *("EAGLE of MiMo's MTP", "EAGLE of MiMo-V2's MTP layers", "EAGLE3", "EAGLE3 of GPT-OSS"),
)
# Beside recurrent layers, whose states a verified step takes back.
WITH_STATES = (
    "NGRAM of Qwen3-Next",
    "EAGLE of Qwen3-Next's MTP",
    "EAGLE of Qwen3.5's MTP",
    "EAGLE of Nemotron-H's MTP",
)
ALGORITHMS = (*PLAIN, *WITH_STATES)
RECURRENT = ("EAGLE of Qwen3.5's MTP", "EAGLE of Nemotron-H's MTP")
THOROUGH = ("NGRAM", "EAGLE3", *RECURRENT)
IMAGES = "EAGLE of Qwen3.5's MTP"  # whose embeddings only the prompt's rows have: steps are sequential
DENSE = ("EAGLE of MiMo's MTP",)
LAYERED = "one layer a group"  # and short prompts overtake
APART = "one layer a group, apart"

pytestmark = pytest.mark.timeout(3200)  # the first test waits for two processes, of up to 1500 s each


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """In two processes."""
    folder, script = tmp_path_factory.mktemp("speculative"), Path(__file__).with_name("speculative_run.py")
    plain = found_by(script, folder / "plain.json", *PLAIN, timeout_s=1500)
    with_states: dict[str, Any] = found_by(script, folder / "states.json", *WITH_STATES, timeout_s=1500)
    return plain | with_states


def found(results: dict[str, Any], name: str) -> dict[str, Any]:
    assert "error" not in results[name], results[name]["error"]
    return results[name]


def ways(results: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """What was seen, without overlap where that was run, and with it."""
    seen = found(results, name)
    return [seen[way] for way in ("without overlap", "with overlap") if way in seen]


@pytest.mark.parametrize("name", ALGORITHMS)
def test_tokens_are_those_of_decoding_one_by_one(results: dict[str, Any], name: str) -> None:
    assert found(results, name)["equal_hugging_face"]
    for seen in ways(results, name):
        assert {"stock", LAYERED, APART} <= seen["equal"].keys()
        assert all(seen["equal"].values()), seen["equal"]
        assert seen["strategies"]["stock"] == []
        first = "sequential" if name == IMAGES else "fused"
        assert (seen["strategies"][LAYERED], seen["strategies"][APART]) == ([first], ["sequential"])


@pytest.mark.parametrize("name", ALGORITHMS)
def test_drafts_are_as_often_right_as_in_stock_scheduling(results: dict[str, Any], name: str) -> None:
    """Of a corpus that grows meanwhile it depends on which prompts came before; see the next test."""
    for seen in ways(results, name):
        for way, (num_steps, num_right) in seen["accepted"].items():
            stock_steps, stock_right = seen["accepted"]["stock"]
            assert stock_right > stock_steps / 4, "drafts that are never right show nothing"
            if not name.startswith("NGRAM"):
                assert num_right / num_steps == pytest.approx(stock_right / stock_steps, rel=0.01), way


@pytest.mark.parametrize("name", ["NGRAM", "NGRAM of Qwen3-Next"])
def test_a_corpus_is_used_beside_cohorts_too(results: dict[str, Any], name: str) -> None:
    for seen in ways(results, name):
        num_steps, num_right = seen["accepted"][LAYERED]
        assert num_right > num_steps / 4


@pytest.mark.parametrize("name", [name for name in ALGORITHMS if name not in DENSE])
def test_experts_are_read_once_for_drafts_and_prompts(results: dict[str, Any], name: str) -> None:
    """NGRAM drafts other tokens in the second of two runs, and so chooses other experts."""
    for seen in ways(results, name):
        for way, (counted, chosen) in seen["expert_bytes"].items():
            assert counted == chosen > 0, way
        if name not in ("NGRAM", IMAGES):
            assert seen["expert_bytes"][LAYERED][0] < seen["expert_bytes"][APART][0]


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_last_step_is_said_to_run_the_drafts_layers(results: dict[str, Any], name: str) -> None:
    """Each of MiMo-V2's is a model of its own."""
    expected = 0 if name.startswith("NGRAM") else 3 if name == "EAGLE of MiMo-V2's MTP layers" else 1
    assert {seen["num_draft_layers"] for seen in ways(results, name)} == {expected}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_prefixes_chunks_and_overtaking_were_met(results: dict[str, Any], name: str) -> None:
    for seen in ways(results, name):
        assert seen["cached_tokens"] >= 70
        assert seen["num_chunks"] >= 2
        assert seen["num_overtaken"] >= 1


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_steps_tensors_are_kept_alive_once(results: dict[str, Any], name: str) -> None:
    kept = found(results, name)["with overlap"]["kept_alive"]
    assert kept["slots"] == kept["steps"] > 100


@pytest.mark.parametrize("name", THOROUGH)
def test_drops_cuts_retractions_and_sessions_change_no_token(results: dict[str, Any], name: str) -> None:
    events = found(results, name)["with overlap"]["events"]
    assert len(events) >= (7 if name in RECURRENT else 8)  # these without sessions
    assert all(events.values()), events


@pytest.mark.parametrize("name", THOROUGH)
def test_log_probabilities_are_those_of_stock_scheduling(results: dict[str, Any], name: str) -> None:
    stock, layered = found(results, name)["with overlap"]["log_probabilities"]
    assert len(stock) == 97
    assert layered == pytest.approx(stock, abs=1e-4)


@pytest.mark.parametrize("name", THOROUGH)
def test_charges_come_with_the_tokens_of_verified_steps(results: dict[str, Any], name: str) -> None:
    charged = found(results, name)["with overlap"]["charged"]
    assert charged["values"] == charged["tokens"]
    assert max(charged["tokens"]) > 1
    # With overlap rows of a request that had just ended are nobody's.
    assert 0.8 * charged["counted"] < charged["handed_on"] <= charged["counted"]


@pytest.mark.parametrize("name", THOROUGH)
def test_answers_keep_to_their_grammars(results: dict[str, Any], name: str) -> None:
    seen = found(results, name)["with overlap"]["grammars"]
    assert set(seen["legal"].values()) == {True}
    for way in ("groups", "retracted"):
        assert seen["tokens"][way] == seen["tokens"]["stock"], way
    assert sum(num_right for _, num_right in seen["drafts"]["groups"]) > 0


def test_pages_of_several_tokens_are_found_again_and_given_back(results: dict[str, Any]) -> None:
    """Prefixes about a page's edge, cohorts that one leaves before each group, short prompts first."""
    seen = found(results, "EAGLE3")["with overlap"]["pages"]
    assert all(seen["tokens"].values()), seen["tokens"]
    assert all(seen["drafts"].values()), seen["drafts"]
    assert set(seen["cached_tokens"].values()) == {0, 16}


@pytest.mark.parametrize("name", ["NGRAM", "EAGLE3"])
def test_turns_of_sessions_go_on_from_what_is_written(results: dict[str, Any], name: str) -> None:
    """The KV of an answer's last token may not be: without overlap SGLang 0.5.17 takes it for written."""
    for seen in ways(results, name):
        assert [all(turns) for turns in seen["right_turns"]] == [True] * 3, seen["right_turns"]


def test_a_model_whose_rows_a_draft_would_not_find_is_refused(results: dict[str, Any]) -> None:
    """Tokens would stay right, and drafts would not."""
    assert "a draft would read other rows than those of a whole forward" in results["EAGLE3"]["lost rows"]


@pytest.mark.parametrize("name", THOROUGH)
def test_whatever_happens_all_answers_are_right_and_no_slot_is_lost(
    results: dict[str, Any], name: str
) -> None:
    storm = found(results, name)["with overlap"]["storm"]
    assert storm["wrong"] == []
    for what in ("cohorts", "retracted", "slots taken", "aborted", "paused"):
        assert storm["happened"][what], what


@pytest.mark.parametrize("name", RECURRENT)
def test_states_that_were_verified_are_found_in_the_prefix_cache(results: dict[str, Any], name: str) -> None:
    """Of a prompt of 50 tokens and an answer of 90 those after 128 tokens, which no prompt's forward kept."""
    assert found(results, name)["with overlap"]["found_again"] == {"cached_tokens": 128, "equal": True}


def test_a_draft_is_told_of_images_beside_cohorts_too(results: dict[str, Any]) -> None:
    """Tokens would be right without; as many drafts as in stock would not."""
    seen, expected = found(results, IMAGES), found(results, IMAGES)["images_hugging_face"]
    tokens, accepted = (seen["with overlap"]["images"][what] for what in ("tokens", "accepted"))
    for way in ("stock", LAYERED, "embeddings lost"):
        assert tokens[way] == expected, way
    assert accepted[LAYERED] == accepted["stock"] != accepted["embeddings lost"]
    num_steps, num_right = accepted[LAYERED]
    assert num_right > num_steps / 4


def test_when_who_has_an_image_leaves_a_cohort_drafts_of_the_others_are_as_alone(
    results: dict[str, Any],
) -> None:
    seen, beside = found(results, IMAGES)["with overlap"]["images"], "beside one that leaves"
    assert seen["tokens"][beside] == seen["tokens"]["alone"]
    assert seen["accepted"][beside] == seen["accepted"]["alone"]
