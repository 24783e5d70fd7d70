"""Every family gives SGLang's and Hugging Face's tokens, however its layers are grouped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from own_process import found_by

from families_table import FAMILIES_SHOWN, families_table
from sglang_layered_lab.models.catalogue import ARCHS

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """All families in one process of their own: SGLang's global state allows one model at a time."""
    out = tmp_path_factory.mktemp("families") / "results.json"
    return found_by(Path(__file__).with_name("family_run.py"), out)


@pytest.fixture(params=ARCHS)
def family(request: pytest.FixtureRequest, results: dict[str, Any]) -> dict[str, Any]:
    result = results[request.param]
    assert "error" not in result, result["error"]
    return result


def test_tokens_equal_those_of_sglang_in_every_way_to_run(family: dict[str, Any]) -> None:
    assert family["equal_stock"] == dict.fromkeys(family["equal_stock"], True)


def test_tokens_equal_those_of_hugging_face(family: dict[str, Any]) -> None:
    assert family["equal_hugging_face"]


def test_expert_bytes_equal_a_count_of_every_row(family: dict[str, Any]) -> None:
    assert family["counted_layers"] == family["expert_layers"]
    assert family["expert_bytes_equal"]


def test_the_probe_at_start_names_the_layer_that_looks_aside(family: dict[str, Any]) -> None:
    """And takes little, and leaves nothing."""
    if family["ranges"] != "ListRanges":
        assert family["probe"] == {}
        return
    seen = family["probe"]
    assert "layer 3 takes more from the layers before it" in seen["layer 3 looks at its neighbour"]
    assert "layer 5 takes more from the layers before it" in seen["layer 5 looks at layer 1"]
    assert "other numbers after another forward" in seen["layer 4 looks at layer 5"]
    assert seen["changed"] == []
    assert seen["seconds"] < 10  # 0.1 s where nothing else runs


def test_the_prompts_went_through_uneven_groups_and_single_layers(family: dict[str, Any]) -> None:
    num_layers = family["num_layers"]
    uneven = {num_layers // 3, -(-num_layers // 3)}
    assert uneven <= set(family["group_sizes"]["uneven"])
    assert uneven <= set(family["group_sizes"]["sequential"])
    assert 1 in family["group_sizes"]["one layer a group"]


def test_short_prompts_overtook_long_ones_in_two_of_the_ways(family: dict[str, Any]) -> None:
    ways = {name for name, times in family["num_overtaken"].items() if times > 0}
    assert ways == {"one layer a group", "sequential"}


def test_a_prompt_that_starts_again_before_any_group_answers_the_same(family: dict[str, Any]) -> None:
    assert family["equal_drops"] == [True] * (family["num_layers"] - 1)


def test_a_prefix_was_found_and_a_long_prompt_went_chunk_by_chunk(family: dict[str, Any]) -> None:
    assert family["cached_tokens"] >= 130
    assert family["num_chunks"] >= 3


def test_the_table_of_the_document_is_what_was_seen(results: dict[str, Any]) -> None:
    assert set(FAMILIES_SHOWN) == set(results)
    text = (REPO / "docs" / "models.md").read_text()
    assert families_table(results) in text, "make it again: scripts/models_table.sh"
