"""Layered output equals SGLang's as released, and Hugging Face's, token for token in float32."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import httpx
import pytest
import torch
from tiny_models import tiny_model
from transformers import AutoModelForCausalLM

from workload import (
    Ask,
    answers,
    assert_equal_answers,
    assert_equal_hugging_face,
    prompt,
    read_steps,
    send_all,
    send_beside,
    settings,
    staggered,
)

pytestmark = pytest.mark.server

MODELS = {"moe": partial(tiny_model, "qwen3_moe"), "llama": partial(tiny_model, "llama")}
NUM_LAYERS = {"moe": 8, "llama": 7}
NUM_DECODED = 150  # so many that those sent first still run when the others come, on a fast machine too


@pytest.fixture(scope="module")
def stock_answers(request: pytest.FixtureRequest) -> Callable[[str], list[dict]]:
    """What SGLang as released answers, asked once an architecture."""

    @cache
    def ask(arch: str) -> list[dict]:
        return answers(request.getfixturevalue(f"stock_{arch}").url, staggered(7, MODELS[arch]()))

    return ask


@pytest.mark.parametrize("group_tokens", [64, 512])
@pytest.mark.parametrize("cohort_tokens", [8192, 512])
@pytest.mark.parametrize("arch", ["moe", "llama"])
def test_staggered_requests_equal_stock_and_hugging_face(
    arch: str, cohort_tokens: int, group_tokens: int, request: pytest.FixtureRequest, stock_answers: Any
) -> None:
    layered, asks = request.getfixturevalue(f"layered_{arch}"), staggered(7, MODELS[arch]())
    already = len(read_steps(layered.steps))
    with settings(layered, layered_cohort_tokens=cohort_tokens, layered_group_tokens=group_tokens):
        got = answers(layered.url, asks)
    assert_equal_answers(asks, got, stock_answers(arch))
    steps = [step for step in read_steps(layered.steps)[already:] if step["kind"] == "layered"]
    most_groups = max(step["num_groups"] for step in steps)
    if (cohort_tokens, group_tokens) == (8192, 512):
        assert 2 <= most_groups <= NUM_LAYERS[arch]  # prompts of up to 3000 tokens, beside others or not
    else:
        assert most_groups == min(cohort_tokens // group_tokens, NUM_LAYERS[arch])
    assert max(sum(step["prompt"].values()) for step in steps) <= cohort_tokens
    if (cohort_tokens, group_tokens) == (8192, 64):
        model = AutoModelForCausalLM.from_pretrained(MODELS[arch](), dtype=torch.float32).eval()
        assert_equal_hugging_face(model, asks[::3], got[::3])
    layered.server.flush_cache()


def test_chunked_and_back_on_a_running_server_loses_no_token(layered_moe, stock_answers: Any) -> None:
    asks = staggered(7, MODELS["moe"]())
    already = len(read_steps(layered_moe.steps))

    async def switch_to_and_fro() -> None:
        async with httpx.AsyncClient(base_url=layered_moe.url, timeout=60, trust_env=False) as client:
            for turn in range(12):
                body = {"server_args": {"layered_prefill": turn % 2}}
                reply = await client.post("/set_internal_state", json=body)
                assert reply.json() == [True]
                await asyncio.sleep(0.4)

    async def both() -> list[dict]:
        got, _ = await asyncio.gather(send_all(layered_moe.url, asks), switch_to_and_fro())
        return got

    assert_equal_answers(asks, asyncio.run(both()), stock_answers("moe"))
    kinds = {step["kind"] for step in read_steps(layered_moe.steps)[already:] if step["prompt"]}
    assert kinds == {"layered", "prefill"}
    layered_moe.server.flush_cache()


def test_a_dense_model_is_told_what_to_expect_and_a_sparse_one_is_not(layered_llama, layered_moe) -> None:
    [line] = [line for line in layered_llama.log.splitlines() if "dense model" in line]
    assert "--layered-group-tokens" in line
    assert "dense model" not in layered_moe.log


def test_settings_show_in_server_info_and_bad_ones_change_nothing(layered_moe) -> None:
    def shown() -> tuple[str, int]:
        info = httpx.get(f"{layered_moe.url}/server_info", timeout=60, trust_env=False).json()
        state = info["internal_states"][0]
        return state["prefill_mode"], state["layered_group_tokens"]

    assert shown() == ("layered", 64)
    with settings(layered_moe, layered_prefill=0, layered_group_tokens=128):
        assert shown() == ("chunked", 128)
    body = {"server_args": {"layered_group_tokens": 0}}
    reply = httpx.post(f"{layered_moe.url}/set_internal_state", json=body, timeout=60, trust_env=False)
    assert reply.status_code == 400
    assert "--layered-group-tokens 0: give 1 or more tokens; nothing changed" in reply.json()["message"]
    assert shown() == ("layered", 64)


def chat(url: str, **options: object) -> str:
    messages = [{"role": "user", "content": "Tell me about ships, and then about the weather at sea. " * 12}]
    body = {"model": "default", "messages": messages, "max_tokens": 30, "temperature": 0, **options}
    reply = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=120, trust_env=False)
    assert reply.status_code == 200, reply.text
    return "|".join(choice["message"]["content"] for choice in reply.json()["choices"])


@pytest.mark.parametrize("options", [{}, {"n": 2}, {"stop": ["a"]}, {"min_p": 0.1, "top_p": 0.9}])
def test_chat_on_text_equals_stock(layered_moe, stock_moe, options: dict) -> None:
    assert chat(layered_moe.url, **options) == chat(stock_moe.url, **options)


@pytest.mark.parametrize("arch", ["moe", "llama"])
def test_every_running_request_decodes_in_every_step(arch: str, request: pytest.FixtureRequest) -> None:
    layered = request.getfixturevalue(f"layered_{arch}")
    already = len(read_steps(layered.steps))
    asks = [
        Ask(prompt(length, 70 + index), 0.0, NUM_DECODED)
        for index, length in enumerate([9, 30, 12, 900, 2000, 300])
    ]
    asyncio.run(send_beside(layered.url, asks[:3], asks[3:]))
    steps = read_steps(layered.steps)[already:]
    assert max(len(step["decode"]) for step in steps if step["kind"] == "layered") >= 2
    appearances: dict[str, list[tuple[int, int]]] = {}
    for step in steps:
        for rid, num_outputs in step["decode"].items():
            appearances.setdefault(rid, []).append((step["step"], num_outputs))
    assert len(appearances) == len(asks)
    for seen in appearances.values():
        first_step = seen[0][0]
        assert seen == [(first_step + offset, 2 + offset) for offset in range(NUM_DECODED - 1)]


@pytest.mark.parametrize(("arch", "num_layers"), [("moe", 8), ("llama", 7)])
def test_each_layer_meets_each_prompt_row_once(
    arch: str, num_layers: int, request: pytest.FixtureRequest
) -> None:
    layered = request.getfixturevalue(f"layered_{arch}")
    asks = [Ask(prompt(length, 90 + length), 0.0, 30) for length in (20, 1000, 200)]
    already = len(read_steps(layered.steps))
    answers(layered.url, asks)
    met: dict[str, list[int]] = {}
    for step in read_steps(layered.steps)[already:]:
        for rid, num_rows in step.get("prompt", {}).items():
            layers = range(*(step["group"] or (0, num_layers)))
            met.setdefault(rid, []).extend(layer for layer in layers for _ in range(num_rows))
    lengths = sorted(len(ask.tokens) for ask in asks)
    assert sorted(len(rows) // num_layers for rows in met.values()) == lengths
    for rows in met.values():
        counts = {layer: rows.count(layer) for layer in range(num_layers)}
        assert len(set(counts.values())) == 1
        assert rows == sorted(rows)
    groups = {step["num_groups"] for step in read_steps(layered.steps) if step["kind"] == "layered"}
    assert num_layers in groups
