"""Prompts with images give SGLang's and Hugging Face's tokens, and their encoder has steps of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from own_process import found_by

ARCHS = ("qwen3_vl_moe", "qwen3_5_moe")
WAYS = ("groups", "uneven", "one layer a group", "sequential", "no cache")
NUM_PICTURES = 4
CHUNK_TOKENS = 512


@pytest.fixture(scope="module")
def results(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What was found with one scheduler a family, each in a process of its own."""
    out = tmp_path_factory.mktemp("images") / "found.json"
    flags = {"disable_overlap_schedule": pytestconfig.getoption("--without-overlap")}
    return found_by(Path(__file__).with_name("image_run.py"), out, json.dumps(flags), *ARCHS)


@pytest.fixture(scope="module", params=ARCHS)
def arch(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def found(arch: str, results: Any) -> Any:
    return results[arch]


@pytest.mark.parametrize("way", WAYS)
def test_tokens_equal_those_of_sglang(found: Any, way: str) -> None:
    seen, stock = found["ways"][way], found["ways"]["stock"]
    assert seen["tokens"] == stock["tokens"]
    assert seen["layered_steps"] > 10
    assert seen["num_rows"] == CHUNK_TOKENS, "no prompt went chunk by chunk"
    assert seen["cached"] == stock["cached"]
    assert max(seen["cached"]) > 100, "no prefix with an image was found"


def test_tokens_equal_those_of_hugging_face(found: Any) -> None:
    assert found["hugging face"] == found["ways"]["stock"]["tokens"]


@pytest.mark.parametrize("way", WAYS)
def test_an_image_is_encoded_once_unless_there_is_no_cache(found: Any, way: str) -> None:
    seen = found["ways"][way]
    assert seen["encoder_steps"] >= 3
    assert (seen["images"] > NUM_PICTURES) == (way == "no cache")
    assert seen["images"] >= NUM_PICTURES


def test_features_of_early_layers_decide_tokens(found: Any, arch: str) -> None:
    """Where a family has such: Qwen3.5 has none."""
    lost, stock = found["without features"]["tokens"], found["ways"]["stock"]["tokens"]
    texts = (0, 6) if arch == "qwen3_vl_moe" else range(len(stock))
    assert [mine == theirs for mine, theirs in zip(lost, stock, strict=True)] == [
        index in texts for index in range(len(stock))
    ]


def test_images_pass_the_encoder_in_steps_of_their_own_in_which_others_decode(found: Any) -> None:
    seen = found["encoder step"]
    assert seen["steps"] == [[1, 0], [2, 0], [2, 1], [2, 2], [2, 3], [2, None]], "images so far, next group"
    assert seen["kinds"] == ["encoder", "encoder", *["layered"] * 4]
    assert seen["neighbour"] >= 6
    assert seen["tokens"] == found["alone"][1:]


def test_a_prefix_that_ends_inside_an_image_is_gone_on_from(found: Any) -> None:
    seen = found["begun before"]
    assert seen["cached"] == CHUNK_TOKENS
    assert seen["tokens"] == found["ways"]["stock"]["tokens"][3]


def test_images_decide_tokens_and_prefixes(found: Any) -> None:
    one, other = found["other pictures"]
    assert one != other
    assert one == found["ways"]["stock"]["tokens"][2]


def test_the_others_of_a_cohort_go_on_when_one_leaves_it_at_any_step(found: Any) -> None:
    for case in found["leaving"]:
        expected = [found["alone"][1 + index] for index in case["stay"]]
        assert case["tokens"] == expected, case


def test_tokens_are_the_same_after_a_drop_at_any_step(found: Any) -> None:
    for case in found["dropped"]:
        assert case["tokens"] == found["alone"], case
