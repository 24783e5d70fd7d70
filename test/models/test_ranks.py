"""Two ranks, tensor or expert parallel, take the same steps and give the tokens of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lora_models import merged
from own_process import found_by
from tiny_models import tiny_model

SCRIPT = Path(__file__).with_name("ranks_run.py")
DRAFTED = SCRIPT.with_name("drafted_ranks_run.py")
KINDS = ("alone", "tp", "ep", "lora", "asked")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """What each rank generated."""
    ranks: dict[str, list[dict[str, Any]]] = found_by(
        SCRIPT, tmp_path_factory.mktemp("ranks") / "found.json", *KINDS
    )
    return ranks


@pytest.mark.parametrize("kind", ["tp", "ep"])
def test_two_ranks_give_the_tokens_of_one(kind: str, found: dict[str, list[dict[str, Any]]]) -> None:
    [one_rank] = found["alone"]
    assert one_rank["groups"] == one_rank["uneven"] == one_rank["stock"]
    assert found[kind] == [one_rank, one_rank]


def test_adapters_cut_for_two_ranks_give_the_answers_of_stock_and_hugging_face(
    found: dict[str, list[dict[str, Any]]],
) -> None:
    seen, other = found["lora"]
    ways = ("stock", "groups", "uneven")
    assert [seen[way] for way in ways] == [other[way] for way in ways] == [seen["stock"]] * 3
    paths, asked = seen["adapters"], seen["prompts"]
    models = {path: merged(tiny_model("qwen3_moe"), path and Path(path)) for path in set(paths)}
    for tokens, path, output in zip(asked, paths, seen["stock"], strict=True):
        logits = models[path](torch.tensor([tokens + output])).logits[0]
        assert logits[len(tokens) - 1 : -1].argmax(-1).tolist() == output


def test_two_ranks_give_a_policy_s_questions_the_same_answers(found: dict[str, list[dict[str, Any]]]) -> None:
    """Strict checks compare what the ranks run in every step; the policies that ship decide by time."""
    seen, other = found["asked"]
    assert seen == other
    asked = {name: answers for name, answers in seen.items() if name.endswith(" answered")}
    assert len(asked) == 5 and all(asked.values()), {name: len(answers) for name, answers in asked.items()}
    assert all(seen[name.removesuffix(" answered")] == seen[""] for name in asked)


def test_two_ranks_with_drafts_answer_without_them_and_draft_as_in_stock_scheduling(tmp_path: Path) -> None:
    seen, other = found_by(DRAFTED, tmp_path / "found.json")
    assert seen == other
    assert seen["groups"] == seen["stock"]
    num_verified, num_right = seen["stock"]["accepted"]
    assert num_right > num_verified / 4, "drafts that are never right show nothing"
    assert seen["equal"], "to Hugging Face"
