"""Bad requests, disconnects and aborts on a real layered server: clear errors, nobody else hurt, no leak."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys

import httpx
import pytest

from release_served import ENDS_THE_RELEASE
from servers import forked
from workload import Ask, answers, output_tokens, prompt, read_steps

pytestmark = pytest.mark.server

BAD_BODIES = {
    "prompt longer than the context": {"input_ids": list(prompt(8300, 1))},
    "empty list of ids": {"input_ids": []},
    "empty text": {"text": ""},
    "no prompt": {},
    "negative max_new_tokens": {"input_ids": [5, 6], "sampling_params": {"max_new_tokens": -1}},
    "unknown sampling parameter": {"input_ids": [5, 6], "sampling_params": {"speed": 3}},
}


def reply_to(url: str, body: dict) -> httpx.Response:
    return httpx.post(f"{url}/generate", json=body, timeout=60, trust_env=False)


def still_serves(url: str) -> None:
    assert len(output_tokens(answers(url, [Ask(prompt(20, 2), 0.0, 4)])[0])) == 4


@pytest.mark.parametrize("what", BAD_BODIES)
def test_bad_requests_get_what_the_release_gives_and_the_server_lives(
    layered_moe, stock_moe, what: str
) -> None:
    mine = reply_to(layered_moe.url, BAD_BODIES[what])
    if what in ENDS_THE_RELEASE:
        assert mine.status_code == 400
    else:
        assert mine.status_code == reply_to(stock_moe.url, BAD_BODIES[what]).status_code
    still_serves(layered_moe.url)


@pytest.mark.parametrize("what", list(BAD_BODIES)[:5])
def test_clear_bad_requests_are_4xx(layered_moe, what: str) -> None:
    assert 400 <= reply_to(layered_moe.url, BAD_BODIES[what]).status_code < 500


async def _hang_up(url: str, tokens: tuple[int, ...], after_s: float) -> None:
    body = Ask(tokens, 0.0, 8).body() | {"stream": True, "rid": f"hang-up-{after_s}"}
    async with httpx.AsyncClient(timeout=60, trust_env=False) as client:
        task = asyncio.create_task(client.post(f"{url}/generate", json=body))
        await asyncio.sleep(after_s)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _beside(url: str, asks: list[Ask], disturb) -> list[list[int]]:
    async with httpx.AsyncClient(base_url=url, timeout=120, trust_env=False) as client:

        async def ask_one(ask: Ask) -> list[int]:
            reply = await client.post("/generate", json=ask.body())
            return output_tokens(reply.json())

        tasks = [asyncio.create_task(ask_one(ask)) for ask in asks]
        await asyncio.sleep(0.3)
        await disturb()
        return await asyncio.gather(*tasks)


def disturbed_equals_quiet(layered, stock, disturb) -> None:
    asks = [Ask(prompt(20 + index, 300 + index), 0.0, 120) for index in range(3)]
    expected = [output_tokens(answer) for answer in answers(stock.url, asks)]
    assert asyncio.run(_beside(layered.url, asks, disturb)) == expected
    layered.server.flush_cache()
    still_serves(layered.url)


def test_clients_that_hang_up_during_a_long_prompt(layered_moe, stock_moe) -> None:
    async def disturb() -> None:
        for attempt in range(8):
            await _hang_up(layered_moe.url, prompt(3000, 400 + attempt), 0.05 + 0.07 * attempt)

    disturbed_equals_quiet(layered_moe, stock_moe, disturb)
    assert "dropped at group" in layered_moe.log


def test_abort_request_during_a_long_prompt(layered_moe, stock_moe) -> None:
    reasons = []

    async def disturb() -> None:
        async with httpx.AsyncClient(base_url=layered_moe.url, timeout=60, trust_env=False) as client:
            for attempt in range(6):
                body = Ask(prompt(3000, 500 + attempt), 0.0, 50).body() | {"rid": f"victim-{attempt}"}
                victim = asyncio.create_task(client.post("/generate", json=body))
                await asyncio.sleep(0.1 + 0.07 * attempt)
                await client.post("/abort_request", json={"rid": f"victim-{attempt}"})
                reasons.append((await victim).json()["meta_info"]["finish_reason"]["type"])

    disturbed_equals_quiet(layered_moe, stock_moe, disturb)
    assert set(reasons) == {"abort"}


def test_engine_door_serves_in_layered_mode(tiny_llama, stock_llama, tmp_path) -> None:
    steps = tmp_path / "steps.jsonl"
    asks = [Ask(prompt(length, 600 + length), 0.0, 12) for length in (10, 500, 90)]
    script = tmp_path / "engine.py"
    script.write_text(
        f"""
import json, sglang

if __name__ == "__main__":
    engine = sglang.Engine(
        model_path={str(tiny_llama)!r}, device="cpu", dtype="float32", max_total_tokens=8000, random_seed=1,
        chunked_prefill_size=128, prefill_mode="layered", layered_group_tokens=64,
        layered_listeners=["jsonl={steps}"],
        layered_check_invariants="strict", log_level="error",
    )
    sampling = {{"temperature": 0, "max_new_tokens": 12, "ignore_eos": True}}
    answers = engine.generate(input_ids={[list(ask.tokens) for ask in asks]!r}, sampling_params=sampling)
    print("ANSWERS", json.dumps([answer["output_ids"] for answer in answers]))
    engine.shutdown()
"""
    )
    command, env = [sys.executable, str(script)], os.environ | forked()
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True, env=env)
    line = next(line for line in done.stdout.splitlines() if line.startswith("ANSWERS "))
    expected = [output_tokens(answer) for answer in answers(stock_llama.url, asks)]
    assert line == f"ANSWERS {expected!s}"
    assert max(step.get("num_groups", 0) for step in read_steps(steps)) > 1
