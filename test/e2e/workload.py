"""Requests with known shapes, sent to a real server at staggered times."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import torch
from event_lines import events
from ties import TiedModel

VOCAB = 1000
USUAL_SETTINGS = {"layered_prefill": 1, "layered_group_tokens": 64, "layered_cohort_tokens": 8192}


@dataclass(frozen=True)
class Ask:
    """One request: its prompt, when it is sent, and what it wants back."""

    tokens: tuple[int, ...]
    delay_s: float
    num_outputs: int
    logprobs: bool = False
    adapter: str | None = None

    def body(self) -> dict[str, Any]:
        body: dict[str, Any] = {
            "input_ids": list(self.tokens),
            "sampling_params": {
                "temperature": 0,
                "max_new_tokens": self.num_outputs,
                "ignore_eos": True,
            },
        }
        if self.logprobs:
            body |= {"return_logprob": True, "logprob_start_len": 0}
        if self.adapter is not None:
            body["lora_path"] = self.adapter
        return body


def prompt(num_tokens: int, seed: int) -> tuple[int, ...]:
    return tuple(random.Random(seed).choices(range(3, VOCAB), k=num_tokens))


def staggered(seed: int, model: Path) -> list[Ask]:
    """36 requests of 5 to 3000 tokens: 8 share a prefix of 400, 4 are exact repeats, some want logprobs.

    None meets a tie between two of the model's experts.
    """
    return list(_without_ties(seed, model))


@cache
def _without_ties(seed: int, model: Path) -> tuple[Ask, ...]:
    tied = TiedModel(model)
    return tuple(untied(with_ties(seed), lambda _: tied))


def untied(asks: list[Ask], model: Callable[[str | None], TiedModel]) -> list[Ask]:
    """The same requests, other tokens where a prompt or its answer meets a tie with an adapter asked for."""
    prompts: dict[tuple[int, ...], tuple[int, ...]] = {}
    for tokens in dict.fromkeys(ask.tokens for ask in asks):
        mine = [ask for ask in asks if ask.tokens == tokens]
        longest = max(ask.num_outputs for ask in mine)
        before, now = (), tokens
        while before != now:
            before = now
            for adapter in dict.fromkeys(ask.adapter for ask in mine):
                now = model(adapter).untied(now, longest)
        prompts[tokens] = now
    return [replace(ask, tokens=prompts[ask.tokens]) for ask in asks]


def with_ties(seed: int) -> list[Ask]:
    rng = random.Random(seed)
    lengths = [5, 3000, 64, 65, 2048, 17, 700, 1500, 128, 33, 900, 260, 8, 450, 1100, 75, 310, 600]
    lengths += [40, 2500, 222, 511, 96, 1300]
    prompts = [prompt(length, seed * 1000 + index) for index, length in enumerate(lengths)]
    shared = prompt(400, seed * 1000 + 500)
    prompts += [shared + prompt(rng.randrange(5, 200), seed * 1000 + 600 + index) for index in range(8)]
    prompts += [prompts[3], prompts[6], prompts[9], prompts[24]]
    return [
        Ask(tokens, index * 0.12, rng.randrange(12, 33), logprobs=index % 3 == 0)
        for index, tokens in enumerate(prompts)
    ]


async def _send(client: httpx.AsyncClient, ask: Ask) -> dict[str, Any]:
    await asyncio.sleep(ask.delay_s)
    reply = await client.post("/generate", json=ask.body())
    assert reply.status_code == 200, reply.text
    answer: dict[str, Any] = reply.json()
    return answer


async def send_all(base_url: str, asks: list[Ask]) -> list[dict[str, Any]]:
    """Send all at their times; answers in the order of `asks`."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=base_url, timeout=300, limits=limits, trust_env=False) as client:
        return await asyncio.gather(*(_send(client, ask) for ask in asks))


def answers(base_url: str, asks: list[Ask]) -> list[dict[str, Any]]:
    """`send_all` from a place without an event loop."""
    return asyncio.run(send_all(base_url, asks))


async def streamed(client: httpx.AsyncClient, body: dict[str, Any], flowing: asyncio.Event) -> str:
    """Read a stream to its end; gives SGLang's finish type, or raises what broke it."""
    last: dict[str, Any] = {}
    async with client.stream("POST", "/generate", json=body | {"stream": True}) as reply:
        reply.raise_for_status()
        async for event in events(reply):
            last = event
            flowing.set()
    if "error" in last or last["meta_info"]["finish_reason"]["type"] == "abort":
        raise httpx.RemoteProtocolError(f"the stream says {last}")
    return str(last["meta_info"]["finish_reason"]["type"])


async def send_beside(base_url: str, streams: list[Ask], asks: list[Ask]) -> None:
    """Send `streams`, and `asks` as soon as each of those has a token; returns when all have ended."""
    async with (
        httpx.AsyncClient(base_url=base_url, timeout=300, trust_env=False) as client,
        asyncio.TaskGroup() as group,
    ):
        flowing = [asyncio.Event() for _ in streams]
        for ask, event in zip(streams, flowing, strict=True):
            group.create_task(streamed(client, ask.body(), event))
        await asyncio.gather(*(event.wait() for event in flowing))
        await send_all(base_url, asks)


def output_tokens(answer: dict[str, Any]) -> list[int]:
    tokens: list[int] = answer["output_ids"]
    return tokens


def logprobs(answer: dict[str, Any]) -> list[float]:
    """Log-probabilities of the prompt's tokens (after the first) and of the output's."""
    meta = answer["meta_info"]
    return [entry[0] for entry in meta["input_token_logprobs"][1:] + meta["output_token_logprobs"]]


def assert_equal_answers(asks: list[Ask], got: list[dict], expected: list[dict]) -> None:
    """The same tokens and, where asked for, log-probabilities within 1e-4."""
    for index, (ask, mine, theirs) in enumerate(zip(asks, got, expected, strict=True)):
        assert output_tokens(mine) == output_tokens(theirs), (
            index,
            len(ask.tokens),
            ask.adapter,
            mine,
            theirs,
        )
    for ask, mine, theirs in zip(asks, got, expected, strict=True):
        if ask.logprobs:
            assert len(logprobs(mine)) == len(ask.tokens) - 1 + ask.num_outputs
            torch.testing.assert_close(
                torch.tensor(logprobs(mine)), torch.tensor(logprobs(theirs)), atol=1e-4, rtol=0
            )


@torch.no_grad()
def assert_equal_hugging_face(model: torch.nn.Module, asks: list[Ask], got: list[dict[str, Any]]) -> None:
    """Every token is the best one of a model of transformers, and log-probabilities are its own to 1e-4.

    An adapter merged into the weights rounds otherwise than one added to what they give: 1.2e-4 of 8.6.
    """
    for ask, answer in zip(asks, got, strict=True):
        tokens, start = torch.tensor([*ask.tokens, *output_tokens(answer)]), len(ask.tokens)
        logits = model(tokens[None]).logits[0, :-1]
        assert logits[start - 1 :].argmax(-1).tolist() == tokens[start:].tolist(), start
        if ask.logprobs:
            theirs = logits.log_softmax(-1).gather(1, tokens[1:, None])[:, 0]
            rtol = 0 if ask.adapter is None else 1e-5
            torch.testing.assert_close(torch.tensor(logprobs(answer)), theirs, atol=1e-4, rtol=rtol)


@contextmanager
def settings(served: Any, **wanted: int) -> Iterator[None]:
    """Other settings for a while, through the running server's own endpoint."""
    change(served.url, wanted)
    try:
        yield
    finally:
        change(served.url, USUAL_SETTINGS)


def change(url: str, wanted: dict[str, int]) -> None:
    reply = httpx.post(f"{url}/set_internal_state", json={"server_args": wanted}, timeout=60, trust_env=False)
    assert reply.json() == [True], reply.text


def read_steps(path: Any) -> list[dict[str, Any]]:
    """A server's steps so far: what its JSONL listener heard, or what a traced server wrote itself.

    A step is written after its tokens were sent, so an answer may be here before its last step: this waits
    until a server that has nothing to do has written everything.
    """
    if not path.exists():
        return []
    size, deadline = -1, time.monotonic() + 3.0
    while path.stat().st_size != size and time.monotonic() < deadline:
        size = path.stat().st_size
        time.sleep(0.2)
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return [record for record in records if record.get("event", "step_done") == "step_done"]
