"""LoRA: every row of a layered step has its own adapter, and a cohort in flight keeps its adapters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_models import merged
from own_process import found_by
from tiny_models import tiny_model

from sglang_layered.upstream.releases import serving

SCRIPT = Path(__file__).with_name("lora_run.py")
MANY = ["ways", "mixed/use", "leaving", "paused", "ended", "changed"]
FEW = ["few", "drained", "evicting", "overtaken", "evicting/fetch"]  # after the last one steps may not go on
WAYS = ["groups", "uneven", "one layer a group", "sequential"]
# By fixture: scenarios, and flags of their scheduler.
CASES: dict[str, tuple[list[str], dict[str, Any]]] = {
    "many": (MANY, {"max_loras_per_batch": 4}),
    "few": (FEW, {"max_loras_per_batch": 2}),
    "experts": (
        ["ways"],
        {"max_loras_per_batch": 4, "kind": "experts", "enable_expert_traffic_metrics": True},
    ),
    "latent": (["ways", "leaving"], {"max_loras_per_batch": 4, "kind": "latent"}),
}
COMPUTED_ALIKE = "which adapters a module adds does not depend on when a step's results are processed"


@pytest.fixture(scope="module")
def found(
    request: pytest.FixtureRequest, pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> Any:
    """What the scenarios found that tests of this run ask for; each case in a process of its own."""
    mine = [item for item in request.session.items if item.getparent(pytest.Module) is request.node]
    asked = {name for item in mine for name in getattr(item, "fixturenames", ())}
    own = {"disable_overlap_schedule": pytestconfig.getoption("--without-overlap")}
    cases = {
        name: {"scenarios": scenarios, "flags": flags | own}
        for name, (scenarios, flags) in CASES.items()
        if name in asked
    }
    return found_by(SCRIPT, tmp_path_factory.mktemp("lora") / "found.json", json.dumps(cases))


@pytest.fixture(scope="module")
def many(found: Any) -> Any:
    """All adapters at a time."""
    return found["many"]


@pytest.fixture(scope="module")
def few(found: Any) -> Any:
    """Two adapters at a time, of three and none."""
    return found["few"]


@pytest.fixture(scope="module")
def experts(found: Any) -> Any:
    """Adapters of every expert, which on a CPU a reference adds; each row has its own in the joined rows."""
    return found["experts"]


@pytest.fixture(scope="module")
def latent(found: Any) -> Any:
    """Latent attention: its module runs for prompt and decode rows by turns, within joined ones."""
    return found["latent"]


@pytest.mark.parametrize("way", WAYS)
def test_answers_with_mixed_adapters_are_those_of_stock_scheduling(many: Any, way: str) -> None:
    assert many["ways"]["different"], "the adapters change nothing"
    seen = many["ways"][way]
    assert all(seen["equal"])
    assert seen["layered"] > 10


@pytest.mark.same_without_overlap(COMPUTED_ALIKE)
@pytest.mark.parametrize("way", WAYS)
def test_adapters_of_latent_attention_give_the_answers_of_stock_scheduling(latent: Any, way: str) -> None:
    assert latent["ways"]["different"], "the adapters change nothing"
    assert all(latent["ways"][way]["equal"])
    assert latent["ways"][way]["layered"] > 10
    assert all(latent["leaving"]["equal"])


@pytest.mark.same_without_overlap(COMPUTED_ALIKE)
def test_adapters_of_latent_attention_give_the_answers_of_hugging_face(latent: Any) -> None:
    assert_equal_hugging_face("deepseek_v3", latent["ways"]["answers"])


@pytest.mark.same_without_overlap(COMPUTED_ALIKE)
@pytest.mark.parametrize("way", WAYS)
def test_adapters_of_experts_give_the_answers_of_stock_scheduling(experts: Any, way: str) -> None:
    assert experts["ways"]["different"], "the adapters change nothing"
    assert all(experts["ways"][way]["equal"])
    assert experts["ways"][way]["layered"] > 10


@pytest.mark.same_without_overlap(COMPUTED_ALIKE)
def test_adapters_of_experts_give_the_answers_of_hugging_face(experts: Any) -> None:
    assert_equal_hugging_face("qwen3_moe", experts["ways"]["answers"])


def assert_equal_hugging_face(arch: str, answers: list[dict[str, Any]]) -> None:
    """Each token is the best one of transformers, the adapter added to the weights."""
    models = {
        path: merged(tiny_model(arch), path and Path(path)) for path in {at["adapter"] for at in answers}
    }
    for answer in answers:
        rows, output = answer["prompt"] + answer["output"], answer["output"]
        logits = models[answer["adapter"]](torch.tensor([rows])).logits[0]
        assert logits[len(rows) - len(output) - 1 : -1].argmax(-1).tolist() == output


def test_a_prefix_is_found_by_prompts_of_its_own_adapter_only(many: Any) -> None:
    assert many["ways"]["groups"]["cached"] == [0, 0, 0, 0, 130, 0, 0]


def test_rows_with_the_adapters_of_other_rows_give_wrong_answers(many: Any) -> None:
    assert not all(many["mixed/use"]["equal"])


def test_a_request_that_leaves_at_any_group_leaves_the_others_their_adapters(many: Any) -> None:
    assert all(many["leaving"]["equal"])


def test_a_cohort_that_is_sent_back_comes_again_with_its_adapter(many: Any) -> None:
    assert all(many["paused"]["equal"])


def test_an_aborted_prompt_ends_by_an_output_or_its_adapter_could_not_be_unloaded(many: Any) -> None:
    """Where SGLang does not give an adapter back by itself."""
    with_adapter = ["AbortReq"] if serving.GIVES_ADAPTERS_BACK else ["output", "abort"]
    assert many["ended"]["heard"] == [with_adapter, with_adapter, ["AbortReq"]]


def test_adapters_come_and_go_beside_a_cohort(many: Any) -> None:
    assert many["changed"] == {"done": [True, True], "equal": True}


@pytest.mark.parametrize("name", ["few", "drained"])
def test_prompts_wait_until_their_adapter_fits_beside_those_in_use(few: Any, name: str) -> None:
    assert all(few[name]["equal"])
    assert few[name]["most"] == 2
    assert few[name]["layered"] > 10


def test_a_parked_cohort_keeps_its_adapter(few: Any) -> None:
    """Two fit: the short prompt of the second goes first, that of the third waits for the long one."""
    assert few["overtaken"] == {"equal": [True] * 3, "order": [1, 0, 2]}


def test_a_cohorts_adapter_is_not_evicted_by_the_decode_beside_it(few: Any) -> None:
    assert few["evicting"]["equal"]


def test_adapters_fetched_batch_by_batch_evict_each_other(few: Any) -> None:
    assert not few["evicting/fetch"]["equal"]
