"""Two ranks, tensor or expert parallel, take the same steps and give the tokens of one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_models import merged
from tiny_models import tiny_model

from sglang_layered_lab.serving import free_port

SCRIPT = Path(__file__).with_name("ranks_run.py")
DRAFTED = SCRIPT.with_name("drafted_ranks_run.py")


def tokens_of(kind: str, num_ranks: int, folder: Path, script: Path = SCRIPT) -> list[dict[str, Any]]:
    """What each rank generated."""
    outs = [folder / f"{kind}-{rank}.json" for rank in range(num_ranks)]
    port = str(free_port())
    processes = [
        subprocess.Popen([sys.executable, str(script), str(rank), kind, port, str(out)])
        for rank, out in enumerate(outs)
    ]
    try:
        codes = [process.wait(timeout=400) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [0] * num_ranks
    return [json.loads(out.read_text()) for out in outs]


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    [tokens] = tokens_of("alone", 1, tmp_path_factory.mktemp("alone"))
    assert tokens["groups"] == tokens["uneven"] == tokens["stock"]
    return tokens


@pytest.mark.parametrize("kind", ["tp", "ep"])
def test_two_ranks_give_the_tokens_of_one(kind: str, one_rank: dict[str, Any], tmp_path: Path) -> None:
    assert tokens_of(kind, 2, tmp_path) == [one_rank, one_rank]


def test_adapters_cut_for_two_ranks_give_the_answers_of_stock_and_hugging_face(tmp_path: Path) -> None:
    seen, other = tokens_of("lora", 2, tmp_path)
    paths, asked = seen.pop("adapters"), seen.pop("prompts")
    del other["adapters"], other["prompts"]
    assert seen == other == dict.fromkeys(("stock", "groups", "uneven"), seen["stock"])
    models = {path: merged(tiny_model("qwen3_moe"), path and Path(path)) for path in set(paths)}
    for tokens, path, output in zip(asked, paths, seen["stock"], strict=True):
        logits = models[path](torch.tensor([tokens + output])).logits[0]
        assert logits[len(tokens) - 1 : -1].argmax(-1).tolist() == output


def test_two_ranks_give_a_policy_s_questions_the_same_answers(tmp_path: Path) -> None:
    """Strict checks compare what the ranks run in every step; the policies that ship decide by time."""
    seen, other = tokens_of("asked", 2, tmp_path)
    assert seen == other
    asked = {name: answers for name, answers in seen.items() if name.endswith(" answered")}
    assert len(asked) == 5 and all(asked.values()), {name: len(answers) for name, answers in asked.items()}
    assert all(seen[name.removesuffix(" answered")] == seen[""] for name in asked)


def test_two_ranks_with_drafts_answer_without_them_and_draft_as_in_stock_scheduling(tmp_path: Path) -> None:
    seen, other = tokens_of("drafted", 2, tmp_path, DRAFTED)
    assert seen == other
    assert seen["groups"] == seen["stock"]
    num_verified, num_right = seen["stock"]["accepted"]
    assert num_right > num_verified / 4, "drafts that are never right show nothing"
    assert seen["equal"], "to Hugging Face"
