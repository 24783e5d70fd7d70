"""Two tensor-parallel ranks of the real server, over gloo: the tokens of one rank and of the release.

Checks are strict, so in every step the ranks compare what they are about to run.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from conftest import LAYERED, Served, serve
from workload import Ask, answers, assert_equal_answers, prompt, read_steps, send_all, staggered

pytestmark = pytest.mark.server

RANKS = ("--tp-size", "2")
ENVIRONMENT = {"SGLANG_NCCL_SO_PATH": "/nonexistent.so", "SGLANG_CPU_OMP_THREADS_BIND": "0|1"}
NUM_PAUSES = 4
NUM_ABORTED = 10


@pytest.fixture(scope="module")
def of_the_release(
    tiny_qwen3_moe: Path, pristine_site: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    """Answers of the release with two ranks; its server is gone when ours starts."""
    env = ENVIRONMENT | {"PYTHONPATH": str(pristine_site)}
    with serve(tmp_path_factory.mktemp("release-ranks"), tiny_qwen3_moe, *RANKS, env=env) as server:
        return answers(server.base_url, staggered(seed=7))


@pytest.fixture(scope="module")
def ranks(
    of_the_release: object, tiny_qwen3_moe: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("layered-ranks")
    listener = ("--layered-listeners", f"jsonl={folder / 'steps.jsonl'}")
    with serve(folder, tiny_qwen3_moe, *RANKS, *LAYERED, *listener, env=ENVIRONMENT) as server:
        yield Served(server, folder / "steps.jsonl")


def test_two_ranks_answer_as_one_and_as_the_release(
    ranks: Served, stock_moe: Served, of_the_release: list[dict[str, Any]]
) -> None:
    asks = staggered(seed=7)
    got = answers(ranks.url, asks)
    assert_equal_answers(asks, got, of_the_release)
    assert_equal_answers(asks, got, answers(stock_moe.url, asks))
    assert any(step["kind"] == "layered" for step in read_steps(ranks.steps))


def test_aborts_and_pauses_leave_the_others_tokens_alone(
    ranks: Served, of_the_release: list[dict[str, Any]]
) -> None:
    asks = staggered(seed=7)

    async def disturbed() -> list[dict[str, Any]]:
        async with httpx.AsyncClient(base_url=ranks.url, timeout=120, trust_env=False) as client:
            got, *_ = await asyncio.gather(send_all(ranks.url, asks), pauses(client), hang_ups(client))
        return got

    assert_equal_answers(asks, asyncio.run(disturbed()), of_the_release)


async def pauses(client: httpx.AsyncClient) -> None:
    for mode in ("retract", "in_place") * (NUM_PAUSES // 2):
        await asyncio.sleep(0.9)
        for path, body in (("/pause_generation", {"mode": mode}), ("/continue_generation", {})):
            reply = await client.post(path, json=body)
            assert reply.status_code == 200, reply.text


async def hang_ups(client: httpx.AsyncClient) -> None:
    """Clients that go away at some moment; their requests are aborted on every rank."""
    rng = random.Random(5)
    for index in range(NUM_ABORTED):
        ask = Ask(prompt(rng.randrange(200, 1500), 900 + index), 0.0, 200)
        with pytest.raises(httpx.ReadTimeout):
            await client.post("/generate", json=ask.body(), timeout=rng.uniform(0.05, 0.5))
