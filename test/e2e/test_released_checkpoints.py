"""What released checkpoints bring, on a real server: quantized weights, adapters, drafts, hierarchical cache.

One server a kind. It answers first in chunked mode, which is SGLang's own scheduling, and then in layered
mode; Hugging Face answers every third request from the same weights as floats.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from event_lines import events
from lora_models import ATTENTION, make_adapter, merged
from ties import TiedModel
from tiny_models import ON_CUDA, drafted_model, quantized_model, tiny_model

from disturbances import aborts, hang_ups, pauses
from servers import LAYERED, Served, serve
from workload import (
    Ask,
    assert_equal_answers,
    assert_equal_hugging_face,
    change,
    read_steps,
    send_all,
    staggered,
    untied,
    with_ties,
)

pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(ON_CUDA, reason="the stand-ins are for a CPU, in float32"),
]

NUM_LAYERS = 4
CHUNK_TOKENS = 1024
POOL_TOKENS = 9000  # the prompts have 20000
HIERARCHICAL = ("--enable-hierarchical-cache", "--hicache-ratio", "6", "--hicache-io-backend", "direct")
HIERARCHICAL += ("--hicache-mem-layout", "layer_first", "--hicache-write-policy", "write_through")
NAMES = ("a", "b")
HELD = ("num_running_reqs", "num_waiting_reqs", "num_used_tokens")
PLAIN = (None,)


@dataclass(frozen=True)
class Kind:
    """A kind of checkpoint: what a CPU needs for it, its folder, its flags, and the same model as floats."""

    stand_in: str
    model: Callable[[], Path]
    floats: Callable[[], Path]
    flags: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    adapters: tuple[str | None, ...] = PLAIN
    draft: Callable[[], Path | None] = lambda: None


def quantized(arch: str, method: str, *flags: str, **env: str) -> Kind:
    def model(*, dequantized: bool) -> Path:
        return quantized_model(arch, method, num_layers=NUM_LAYERS, dequantized=dequantized)

    return Kind("quantized", lambda: model(dequantized=False), lambda: model(dequantized=True), flags, env)


def plain() -> Path:
    return tiny_model("qwen3_moe")


def drafted() -> Path:
    return drafted_model("qwen3_moe", None)[0]


GPT_OSS = ("--moe-runner-backend", "triton")
LORA = ("--enable-lora", "--lora-backend", "torch_native")
CHAIN = ("--speculative-algorithm", "EAGLE", "--speculative-num-steps", "3", "--speculative-eagle-topk", "1")
CHAIN += ("--speculative-num-draft-tokens", "4")
UNCOMPILED = {"TORCH_COMPILE_DISABLE": "1"}  # SGLang compiles small functions of its drafts, for minutes
KINDS = {
    "fp8-block": quantized("qwen3_moe", "fp8-block"),
    "mxfp4": quantized("gpt_oss", "mxfp4", *GPT_OSS, TRITON_INTERPRET="1"),
    "lora": Kind("lora", plain, plain, LORA, adapters=(*PLAIN, *NAMES)),
    "hicache": Kind("hicache", plain, plain, HIERARCHICAL),
    "drafts": Kind(
        "drafts", drafted, drafted, CHAIN, UNCOMPILED, draft=lambda: drafted_model("qwen3_moe", "eagle")[1]
    ),
}


Answers = tuple[list[dict[str, Any]], list[str]]
Disturbance = Callable[[httpx.AsyncClient], Coroutine[Any, Any, None]]


@dataclass(frozen=True)
class Serving(Served):
    """A server of a kind, and where its adapters are."""

    kind: Kind = KINDS["hicache"]
    folder: Path = Path()

    @cached_property
    def asks(self) -> list[Ask]:
        """36 requests; those with the same prompt have other adapters, those with a prefix take turns."""
        adapters = self.kind.adapters + self.kind.adapters[-1:]
        if adapters == PLAIN and self.kind.floats is plain:
            return staggered(7, plain())
        asks = [
            replace(ask, adapter=adapters[index % len(adapters)])
            for index, ask in enumerate(with_ties(seed=7))
        ]
        return untied(asks, cache(lambda adapter: TiedModel(self.floats(adapter))))

    def floats(self, adapter: str | None) -> torch.nn.Module:
        """The model with an adapter, for Hugging Face."""
        return merged(self.kind.floats(), None if adapter is None else self.folder / adapter)

    @cached_property
    def stock(self) -> Answers:
        """What SGLang's own scheduling answers."""
        change(self.url, {"layered_prefill": 0})
        already = len(read_steps(self.steps))
        got = self.answers()
        assert not any(step["kind"] == "layered" for step in read_steps(self.steps)[already:])
        change(self.url, {"layered_prefill": 1})
        return got

    def answers(self, *disturbances: Disturbance) -> Answers:
        """To all requests, and to a chat that is streamed beside them for each adapter."""

        async def all_at_once() -> Answers:
            async with httpx.AsyncClient(base_url=self.url, timeout=300, trust_env=False) as client:
                chats = [chat(client, adapter) for adapter in self.kind.adapters]
                beside = [disturb(client) for disturb in disturbances]
                got, *texts = await asyncio.gather(send_all(self.url, self.asks), *chats, *beside)
            return got, texts[: len(chats)]

        return asyncio.run(all_at_once())

    def held(self) -> dict[str, int]:
        """What the server holds of requests and KV slots, with an empty cache."""
        self.server.flush_cache()
        reply = httpx.get(f"{self.url}/v1/loads", timeout=60, trust_env=False).raise_for_status()
        return {name: reply.json()["loads"][0][name] for name in HELD}


async def chat(client: httpx.AsyncClient, adapter: str | None) -> str:
    """The text of an answer that is streamed."""
    await asyncio.sleep(1.0)
    body = {
        "model": "default" if adapter is None else f"default:{adapter}",
        "messages": [{"role": "user", "content": "Tell me about ships, and about the weather at sea. " * 12}],
        "max_tokens": 30,
        "temperature": 0,
        "stream": True,
    }
    parts = []
    async with client.stream("POST", "/v1/chat/completions", json=body) as reply:
        reply.raise_for_status()
        async for event in events(reply):
            parts += [choice["delta"].get("content") or "" for choice in event["choices"]]
    assert len(parts) > 5
    return "".join(parts)


@pytest.fixture(scope="module", params=KINDS)
def serving(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    kind, folder = KINDS[request.param], tmp_path_factory.mktemp(request.param)
    steps = folder / "steps.jsonl"
    flags = [*LAYERED, "--chunked-prefill-size", str(CHUNK_TOKENS), "--max-total-tokens", str(POOL_TOKENS)]
    flags += ["--layered-listeners", f"jsonl={steps}", *kind.flags]
    if (draft := kind.draft()) is not None:
        flags += ["--speculative-draft-model-path", str(draft)]
    adapters = [name for name in kind.adapters if name is not None]
    for seed, name in enumerate(adapters):
        make_adapter(folder / name, seed, 4 * (seed + 1), 8, ATTENTION)
    if adapters:
        flags += ["--lora-paths", *(f"{name}={folder / name}" for name in adapters)]
    env = {"STAND_IN": kind.stand_in, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **kind.env}
    server = serve(folder, kind.model(), *flags, env=env)
    start = server.command.index("-m")
    server.command[start : start + 2] = [str(Path(__file__).with_name("stand_in_server.py"))]
    with server:
        yield Serving(server, steps, kind, folder)


def test_staggered_requests_equal_stock_and_hugging_face(serving: Serving) -> None:
    asks, (stock, texts) = serving.asks, serving.stock
    serving.server.flush_cache()
    already = len(read_steps(serving.steps))
    got, spoken = serving.answers()
    assert_equal_answers(asks, got, stock)
    assert spoken == texts
    layered = [step for step in read_steps(serving.steps)[already:] if step["kind"] == "layered"]
    assert len(layered) > 20
    assert max(step["num_groups"] for step in layered) >= NUM_LAYERS
    if serving.kind.stand_in == "drafts":
        long = [answer["meta_info"] for answer in got if len(answer["output_ids"]) > 8]
        assert max(told["spec_accept_length"] for told in long) > 2, (
            "drafts that are never right show nothing"
        )
    for adapter in serving.kind.adapters:
        indices = [index for index in range(0, len(asks), 3) if asks[index].adapter == adapter]
        assert_equal_hugging_face(
            serving.floats(adapter), [asks[at] for at in indices], [got[at] for at in indices]
        )


def test_adapters_change_the_answers(serving: Serving) -> None:
    """An adapter that changed nothing would be equal to anything."""
    for ask in serving.asks[:3]:
        asks = [replace(ask, adapter=adapter, delay_s=0.0) for adapter in serving.kind.adapters]
        answers = asyncio.run(send_all(serving.url, asks))
        assert len({tuple(answer["output_ids"]) for answer in answers}) == len(asks)


def test_aborts_and_pauses_leave_the_others_tokens_alone_and_nothing_behind(serving: Serving) -> None:
    """What those before left in the cache is found: on the host, where there is one."""
    (stock, texts), adapters = serving.stock, serving.kind.adapters
    already = len(read_steps(serving.steps))
    gone, aborted = partial(hang_ups, adapters=adapters[-1:]), partial(aborts, adapters=adapters[:2])
    got, spoken = serving.answers(pauses, gone, aborted)
    assert_equal_answers(serving.asks, got, stock)
    assert spoken == texts
    assert any(step["kind"] == "layered" for step in read_steps(serving.steps)[already:])
    from_host = [(answer["meta_info"]["cached_tokens_details"] or {}).get("host", 0) for answer in got]
    assert (sum(from_host) > 1000) == (serving.kind.stand_in == "hicache")
    assert serving.held() == dict.fromkeys(HELD, 0)
    assert "Traceback" not in serving.log
    for name in adapters[1:]:  # SGLang unloads it when no request has it any more
        body = {"lora_name": name}
        reply = httpx.post(f"{serving.url}/unload_lora_adapter", json=body, timeout=60, trust_env=False)
        assert reply.json()["success"], reply.text
