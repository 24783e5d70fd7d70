"""Quantized weights give SGLang's tokens, however layers are grouped, on the branches of a CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from own_process import found_by

REPO = Path(__file__).resolve().parents[2]
FP8 = ["Fp8LinearMethod", "Fp8MoEMethod"]
# What computes the layers. GPT-OSS has plain attention in the checkpoint as well.
METHODS = {
    "fp8-block": FP8,
    "gptq": ["GPTQIntelAMXLinearScheme", "GPTQIntelAMXMoEScheme"],
    "awq": ["AWQIntelAMXLinearScheme", "AWQIntelAMXMoEScheme"],
    "mxfp4": ["Mxfp4MoEMethod", "UnquantizedLinearMethod"],
    "w8a8-int8": ["W8A8Int8LinearMethod", "W8A8Int8MoEMethod"],
    "fp8-block, activations by group": FP8,
}
WEIGHTS_ONLY = ("fp8-block", "gptq", "awq", "mxfp4")
QUANTIZED_ACTIVATIONS = ("w8a8-int8", "fp8-block, activations by group")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """All models in one process of their own: SGLang's global state allows one at a time."""
    out = tmp_path_factory.mktemp("quantized") / "results.json"
    return found_by(Path(__file__).with_name("quantized_run.py"), out)


@pytest.fixture(params=METHODS)
def seen(request: pytest.FixtureRequest, results: dict[str, Any]) -> dict[str, Any]:
    return found(results, request.param)


def found(results: dict[str, Any], name: str) -> dict[str, Any]:
    assert "error" not in results[name], results[name]["error"]
    return results[name]


@pytest.mark.parametrize("name", METHODS)
def test_the_layers_are_computed_by_the_quantized_method(results: dict[str, Any], name: str) -> None:
    assert found(results, name)["methods"] == METHODS[name]


def test_tokens_equal_those_of_sglang_in_every_way_to_run(seen: dict[str, Any]) -> None:
    assert seen["equal_stock"] == dict.fromkeys(("groups", "uneven", "one layer a group", "sequential"), True)
    assert max(seen["furthest_logprob"].values()) < 1e-3  # sums in float32 depend on the number of rows


def test_tokens_equal_those_of_sglang_after_a_prompt_left_at_a_group(seen: dict[str, Any]) -> None:
    assert seen["equal_after_drops"] == {"1": True, "2": True}


@pytest.mark.parametrize("name", QUANTIZED_ACTIVATIONS)
def test_tokens_do_not_depend_on_the_requests_beside(results: dict[str, Any], name: str) -> None:
    assert found(results, name)["equal_alone"]


@pytest.mark.parametrize("name", WEIGHTS_ONLY)
def test_tokens_equal_those_of_hugging_face_on_the_same_floats(results: dict[str, Any], name: str) -> None:
    assert found(results, name)["equal_hugging_face"]


def test_prefixes_chunks_and_groups_of_each_kind_were_met(seen: dict[str, Any]) -> None:
    assert seen["cached_tokens"] >= 70
    assert seen["num_chunks"] >= 3
    assert {1, 2} <= set(seen["group_sizes"]["uneven"])
    assert 1 in seen["group_sizes"]["one layer a group"]
