"""Two ranks of the real server, over gloo: the tokens of one rank.

Tensor-parallel ones also give the tokens of the release with two ranks; checks are strict there, so in every
step the ranks compare what they are about to run. Two pipeline stages run groups of their own layers only.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from tiny_models import tiny_model

from disturbances import hang_ups, pauses
from measured import MEASURING, replayed_energy, series, state
from release_served import IS_0_5_17
from servers import LAYERED, Served, serve
from workload import Ask, answers, assert_equal_answers, change, prompt, read_steps, send_all, staggered

pytestmark = pytest.mark.server

RANKS = ("--tp-size", "2")
OVER_GLOO = {"SGLANG_NCCL_SO_PATH": "/nonexistent.so"}
ENVIRONMENT = OVER_GLOO | {"SGLANG_CPU_OMP_THREADS_BIND": "0|1"}
GROUPS = 4


@pytest.fixture(scope="module")
def of_the_release(
    tiny_qwen3_moe: Path, pristine_site: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    """Answers of the release with two ranks; its server is gone when ours starts."""
    env = ENVIRONMENT | {"PYTHONPATH": str(pristine_site)}
    with serve(tmp_path_factory.mktemp("release-ranks"), tiny_qwen3_moe, *RANKS, env=env) as server:
        return answers(server.base_url, staggered(7, tiny_model("qwen3_moe")))


@pytest.fixture(scope="module")
def of_one_rank(stock_moe: Served) -> list[dict[str, Any]]:
    """Answers of the release with one rank."""
    return answers(stock_moe.url, staggered(7, tiny_model("qwen3_moe")))


@pytest.fixture(scope="module")
def ranks(
    of_the_release: object, tiny_qwen3_moe: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("layered-ranks")
    flags = (*MEASURING, "--layered-listeners", f"jsonl={folder / 'steps.jsonl'}")
    flags += ("--layered-policy", "auto", "--layered-num-groups", str(GROUPS))
    env = ENVIRONMENT | replayed_energy(folder)
    with serve(folder, tiny_qwen3_moe, *RANKS, *LAYERED, *flags, env=env) as server:
        yield Served(server, folder / "steps.jsonl")


def test_two_ranks_answer_as_one_and_as_the_release(
    ranks: Served, of_one_rank: list[dict[str, Any]], of_the_release: list[dict[str, Any]]
) -> None:
    asks = staggered(7, tiny_model("qwen3_moe"))
    got = answers(ranks.url, asks)
    assert_equal_answers(asks, got, of_the_release)
    assert_equal_answers(asks, got, of_one_rank)
    assert any(step["kind"] == "layered" for step in read_steps(ranks.steps))


def test_one_rank_reports_and_its_experts_are_half_as_large(ranks: Served, tiny_qwen3_moe: Path) -> None:
    answers(ranks.url, [Ask(prompt(100, 1), 0.0, 4)])
    for name in ("expert_load_bytes_total", "layered_steps_total", "energy_joules_total"):
        assert {found["tp_rank"] for found in series(ranks.url, name)} == {"0"}
    config = json.loads((tiny_qwen3_moe / "config.json").read_text())
    whole = 3 * config["moe_intermediate_size"] * config["hidden_size"] * 4  # float32
    [replica] = state(ranks.url)
    assert replica["expert_traffic"]["expert_bytes"] == [whole // 2] * 8
    assert len(series(ranks.url, "energy_joules_total")) == 1


def test_aborts_and_pauses_leave_the_others_tokens_alone(
    ranks: Served, of_the_release: list[dict[str, Any]]
) -> None:
    asks = staggered(7, tiny_model("qwen3_moe"))

    async def disturbed() -> list[dict[str, Any]]:
        async with httpx.AsyncClient(base_url=ranks.url, timeout=120, trust_env=False) as client:
            got, *_ = await asyncio.gather(send_all(ranks.url, asks), pauses(client), hang_ups(client))
        return got

    assert_equal_answers(asks, asyncio.run(disturbed()), of_the_release)


def test_ranks_agree_on_decisions_by_time(ranks: Served, of_the_release: list[dict[str, Any]]) -> None:
    """Policy auto, with the times of rank 0 on both; a step that differs would stop the server."""
    asks = staggered(7, tiny_model("qwen3_moe"))
    before = len(read_steps(ranks.steps))
    change(ranks.url, {"layered_num_groups": 0, "layered_tbt_ms": 20})
    got = answers(ranks.url, asks)
    change(ranks.url, {"layered_num_groups": GROUPS})
    assert_equal_answers(asks, got, of_the_release)
    decided = [step for step in read_steps(ranks.steps)[before:] if step["decision"] is not None]
    assert decided
    assert all(step["decision"]["budget_s"] < 0.02 for step in decided)


def test_ranks_agree_on_who_overtakes(ranks: Served, of_the_release: list[dict[str, Any]]) -> None:
    asks = staggered(7, tiny_model("qwen3_moe"))
    change(ranks.url, {"layered_num_groups": 0, "layered_max_parked": 1})
    got = answers(ranks.url, asks)
    change(ranks.url, {"layered_num_groups": GROUPS, "layered_max_parked": 0})
    assert_equal_answers(asks, got, of_the_release)
    [overtaken] = series(ranks.url, "layered_overtaken_cohorts_total")
    assert overtaken["value"] > 0


@dataclass(frozen=True)
class Staged:
    """A server of two pipeline stages and the steps that each wrote."""

    url: str
    folder: Path

    def steps(self, stage: int) -> list[dict[str, Any]]:
        return read_steps(self.folder / f"steps-{stage}.jsonl")


@pytest.fixture(scope="module")
def staged(tiny_qwen3_moe: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Staged]:
    folder = tmp_path_factory.mktemp("staged")
    flags = ["--pp-size", "2", "--prefill-mode", "layered", "--layered-group-tokens", "64"]
    flags += ["--chunked-prefill-size", "512", "--layered-listeners", f"jsonl={folder}/steps-{{pp}}.jsonl"]
    # 0.5.17 takes a stage's cores by its tensor rank, so both stages would share one.
    env = (OVER_GLOO if IS_0_5_17 else ENVIRONMENT) | replayed_energy(folder)
    with serve(folder, tiny_qwen3_moe, *flags, *MEASURING, env=env) as server:
        yield Staged(server.base_url, folder)


def test_two_stages_answer_as_one_rank(staged: Staged, of_one_rank: list[dict[str, Any]]) -> None:
    asks = staggered(7, tiny_model("qwen3_moe"))
    assert_equal_answers(asks, answers(staged.url, asks), of_one_rank)


def test_every_stage_counts_its_experts_and_one_the_tokens_and_joules(staged: Staged) -> None:
    def load(stage: str) -> float:
        found = series(staged.url, "expert_load_bytes_total")
        return sum(each["value"] for each in found if each["pp_rank"] == stage)

    before = [load(stage) for stage in "01"]
    answers(staged.url, [Ask(prompt(100, 1), 0.0, 4)])
    assert all(load(stage) > earlier for stage, earlier in zip("01", before, strict=True))
    tokens = series(staged.url, "tokens_for_energy_total")
    assert {found["pp_rank"] for found in tokens} == {"0"}
    assert [found["pp_rank"] for found in series(staged.url, "energy_joules_total")] == ["0"]
    [first_stage] = state(staged.url)
    assert first_stage["expert_traffic"]["moe_layers"] == [0, 1, 2, 3]


def test_every_stage_runs_its_own_layers_and_each_prompt_row_once(staged: Staged) -> None:
    asks = [Ask(prompt(length, 400 + length), 0.3 * index, 40) for index, length in enumerate((30, 900, 450))]
    before = [len(staged.steps(stage)) for stage in (0, 1)]
    answers(staged.url, asks)
    met: dict[tuple[str, int], int] = {}
    for stage, layers in enumerate([range(4), range(4, 8)]):
        layered = 0
        for step in staged.steps(stage)[before[stage] :]:
            group = range(*step["group"]) if step["group"] else layers
            assert set(group) <= set(layers)
            layered += step["kind"] == "layered"
            for rid, num_rows in step.get("prompt", {}).items():
                for layer in group:
                    met[rid, layer] = met.get((rid, layer), 0) + num_rows
        assert layered >= 4
    by_layer = {layer: sorted(rows for (_, at), rows in met.items() if at == layer) for layer in range(8)}
    assert list(by_layer.values()) == [[30, 450, 900]] * 8


def test_a_cohort_follows_another_through_the_stages_and_waits_where_it_is_still(staged: Staged) -> None:
    asks = [Ask(prompt(12, 500), 0.0, 150)]
    asks += [
        Ask(prompt(length, 501 + length), 0.4 + 0.01 * index, 4) for index, length in enumerate((512, 65))
    ]
    asks += [Ask(prompt(512, 700 + index), 0.6, 4) for index in range(4)]
    before = [len(staged.steps(stage)) for stage in (0, 1)]
    answers(staged.url, asks)
    layered = [
        [step for step in staged.steps(stage)[start:] if step["kind"] == "layered"]
        for stage, start in enumerate(before)
    ]
    first, second = ({step["step"] for step in steps} for steps in layered)
    assert first & second
    for stage, steps in enumerate(layered):
        end = 4 * stage
        for step in steps:
            assert step["group"][0] == (4 * stage if end == 4 * stage + 4 else end)
            end = step["group"][1]


def test_hang_ups_leave_the_others_tokens_alone_over_two_stages(
    staged: Staged, of_one_rank: list[dict[str, Any]]
) -> None:
    asks = staggered(7, tiny_model("qwen3_moe"))

    async def disturbed() -> list[dict[str, Any]]:
        async with httpx.AsyncClient(base_url=staged.url, timeout=120, trust_env=False) as client:
            got, _ = await asyncio.gather(send_all(staged.url, asks), hang_ups(client))
            assert (await client.get("/health_generate")).status_code == 200
        return got

    assert_equal_answers(asks, asyncio.run(disturbed()), of_one_rank)
