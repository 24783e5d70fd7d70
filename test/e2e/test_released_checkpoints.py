"""What released checkpoints bring, on a real server: quantized weights, LoRA adapters, a hierarchical cache.

One server a kind. It answers first in chunked mode, which is SGLang's own scheduling, and then in layered mode;
Hugging Face answers every third request from the same weights as floats.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load_file
from tiny_models import ON_CUDA, quantized_model, tiny_model
from transformers import AutoModelForCausalLM

from disturbances import hang_ups, pauses
from lora_models import ATTENTION, make_adapter
from measured import series
from servers import LAYERED, Served, serve
from workload import (
    Ask,
    assert_equal_answers,
    assert_equal_hugging_face,
    change,
    read_steps,
    send_all,
    staggered,
)

pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(ON_CUDA, reason="the stand-ins are for a CPU, in float32"),
]

NUM_LAYERS = 4
CHUNK_TOKENS = 1024
POOL_TOKENS = 9000  # the prompts have 22000
HIERARCHICAL = ("--enable-hierarchical-cache", "--hicache-ratio", "6", "--hicache-io-backend", "direct")
HIERARCHICAL += ("--hicache-mem-layout", "layer_first", "--hicache-write-policy", "write_through")
NAMES = ("a", "b")
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


def quantized(arch: str, method: str, *flags: str, **env: str) -> Kind:
    def model(*, dequantized: bool) -> Path:
        return quantized_model(arch, method, num_layers=NUM_LAYERS, dequantized=dequantized)

    return Kind("quantized", lambda: model(dequantized=False), lambda: model(dequantized=True), flags, env)


def plain() -> Path:
    return tiny_model("qwen3_moe")


GPT_OSS = ("--attention-backend", "triton", "--moe-runner-backend", "triton")
LORA = ("--enable-lora", "--lora-backend", "torch_native", "--max-loras-per-batch", "2")
KINDS = {
    "fp8-block": quantized("qwen3_moe", "fp8-block"),
    "mxfp4": quantized("gpt_oss", "mxfp4", *GPT_OSS, TRITON_INTERPRET="1"),
    "lora": Kind("lora", plain, plain, LORA, adapters=(*PLAIN, *NAMES)),
    "hicache": Kind("hicache", plain, plain, (*HIERARCHICAL, "--enable-metrics")),
}


@dataclass(frozen=True)
class Serving(Served):
    """A server of a kind, and where its adapters are."""

    kind: Kind = KINDS["hicache"]
    folder: Path = Path()

    @cached_property
    def asks(self) -> list[Ask]:
        """36 requests; those with the same prompt have other adapters, those with a prefix take turns."""
        adapters = self.kind.adapters + self.kind.adapters[-1:]
        return [
            replace(ask, adapter=adapters[index % len(adapters)])
            for index, ask in enumerate(staggered(seed=7))
        ]

    @cached_property
    def stock(self) -> list[dict[str, Any]]:
        """What SGLang's own scheduling answers."""
        change(self.url, {"layered_prefill": 0})
        already = len(read_steps(self.steps))
        got = asyncio.run(send_all(self.url, self.asks))
        assert not any(step["kind"] == "layered" for step in read_steps(self.steps)[already:])
        change(self.url, {"layered_prefill": 1})
        return got

    def load(self) -> dict[str, Any]:
        """What the server holds: requests and KV slots."""
        return get(self.url, "/v1/loads")["loads"][0]


def get(url: str, path: str) -> Any:
    return httpx.get(f"{url}{path}", timeout=60, trust_env=False).raise_for_status().json()


@pytest.fixture(scope="module", params=KINDS)
def serving(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    kind, folder = KINDS[request.param], tmp_path_factory.mktemp(request.param)
    steps = folder / "steps.jsonl"
    flags = [*LAYERED, "--chunked-prefill-size", str(CHUNK_TOKENS), "--max-total-tokens", str(POOL_TOKENS)]
    flags += ["--layered-listeners", f"jsonl={steps}", *kind.flags]
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
    asks, stock = serving.asks, serving.stock
    forget_prefixes(serving)
    already = len(read_steps(serving.steps))
    got = asyncio.run(send_all(serving.url, asks))
    assert_equal_answers(asks, got, stock)
    layered = [step for step in read_steps(serving.steps)[already:] if step["kind"] == "layered"]
    assert len(layered) > 20
    assert max(step["num_groups"] for step in layered) >= NUM_LAYERS
    for adapter in serving.kind.adapters:
        model = floats(serving, adapter)
        indices = [index for index in range(0, len(asks), 3) if asks[index].adapter == adapter]
        assert_equal_hugging_face(model, [asks[at] for at in indices], [got[at] for at in indices])


def forget_prefixes(serving: Serving) -> None:
    """Also of the host, or layered mode would compute little."""
    serving.server.flush_cache()


def floats(serving: Serving, adapter: str | None) -> torch.nn.Module:
    """The model in transformers, its adapter added to its weights."""
    model = AutoModelForCausalLM.from_pretrained(serving.kind.floats(), dtype=torch.float32).eval()
    if adapter is None:
        return model
    config = json.loads((serving.folder / adapter / "adapter_config.json").read_text())
    weights = load_file(serving.folder / adapter / "adapter_model.safetensors")
    for name, up in weights.items():
        if name.endswith(".lora_B.weight"):
            stem = name.removesuffix(".lora_B.weight")
            change = up @ weights[f"{stem}.lora_A.weight"] * (config["lora_alpha"] / config["r"])
            model.get_submodule(stem.removeprefix("base_model.model.")).weight.data += change
    return model


def test_adapters_change_the_answers(serving: Serving) -> None:
    """An adapter that changed nothing would be equal to anything."""
    for ask in serving.asks[:3]:
        asks = [replace(ask, adapter=adapter, delay_s=0.0) for adapter in serving.kind.adapters]
        answers = asyncio.run(send_all(serving.url, asks))
        assert len({tuple(answer["output_ids"]) for answer in answers}) == len(asks)


def test_aborts_and_pauses_leave_the_others_tokens_alone_and_nothing_behind(serving: Serving) -> None:
    stock, adapters = serving.stock, serving.kind.adapters
    serving.server.flush_cache()
    idle = serving.load()

    async def disturbed() -> list[dict[str, Any]]:
        async with httpx.AsyncClient(base_url=serving.url, timeout=120, trust_env=False) as client:
            asks = send_all(serving.url, serving.asks)
            got, *_ = await asyncio.gather(asks, pauses(client), hang_ups(client, adapters))
            assert (await client.get("/health_generate")).status_code == 200
        return got

    already = len(read_steps(serving.steps))
    assert_equal_answers(serving.asks, asyncio.run(disturbed()), stock)
    assert any(step["kind"] == "layered" for step in read_steps(serving.steps)[already:])
    serving.server.flush_cache()
    held = serving.load()
    for name in ("num_running_reqs", "num_waiting_reqs", "num_used_tokens"):
        assert held[name] == idle[name] == 0
    assert " ERROR" not in serving.log and "Traceback" not in serving.log
