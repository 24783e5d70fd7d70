"""A scheduler with LoRA adapters, stepped by hand on a CPU."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"  # latent attention joins the parts of its keys in a Triton kernel
os.environ["TORCH_COMPILE_DISABLE"] = "1"  # SGLang compiles how experts are chosen, for many seconds

from tiny_models import tiny_model, use_the_cpu

use_the_cpu()

# ruff: noqa: E402
from lora_models import ATTENTION, EXPERTS, LATENT, make_adapter
from sglang.srt.lora.lora_registry import LoRARef

from harness import SteppedScheduler
from prompts import prompt

NUM_OUTPUTS = 10
OUTPUT = {"self_attn.o_proj": (128, 128)}
KINDS = {  # of a family: rank and modules of each adapter
    "attention": ("qwen3_moe", {"a": (4, ATTENTION), "b": (8, ATTENTION), "c": (16, OUTPUT)}),
    "latent": ("deepseek_v3", {"a": (4, LATENT), "b": (8, LATENT), "c": (16, OUTPUT)}),
    "experts": ("qwen3_moe", {"a": (4, EXPERTS | OUTPUT), "b": (8, EXPERTS), "c": (16, OUTPUT)}),
}
ORDER = ("a", None, "b", "c", "b", "c", "a")  # of the prompts below


def prompts() -> list[list[int]]:
    """Seven, of which the fourth goes in chunks; the fifth and sixth start as the third."""
    made = [prompt(length, index) for index, length in enumerate((12, 300, 130, 600, 90, 60, 77))]
    made[4], made[5] = made[2] + made[4], made[2] + made[5]
    return made


class Run:
    """One scheduler and its adapters; an id is None where no adapter is used."""

    def __init__(self, folder: Path, kind: str = "attention", **flags: Any) -> None:
        arch, adapters = KINDS[kind]
        refs, model = [], tiny_model(arch)
        num_layers = json.loads((model / "config.json").read_text())["num_hidden_layers"]
        for seed, (name, (rank, modules)) in enumerate(adapters.items()):
            path = make_adapter(folder / name, seed, rank, num_layers, modules)
            refs.append(LoRARef(lora_name=name, lora_path=str(path), pinned=False))
        self.refs = {ref.lora_name: ref for ref in refs}
        self.stepped = SteppedScheduler(
            model,
            max_total_tokens=4000,
            layered_group_tokens=64,
            chunked_prefill_size=256,
            enable_lora=True,
            lora_paths=refs,
            lora_backend="torch_native",
            **flags,
        )
        self.manager = self.stepped.scheduler.tp_worker.model_runner.lora_manager
        self.most_adapters = 0

    def send(self, tokens: Sequence[int], name: str | None, num_outputs: int = NUM_OUTPUTS) -> str:
        """Queue a request with an adapter."""
        return self.stepped.send(
            tokens, num_outputs, lora_id=None if name is None else self.refs[name].lora_id
        )

    def answers(self, names: Sequence[str | None] = ORDER, **settings: float) -> list[list[int]]:
        """Of all prompts, each sent while those before it decode."""
        self.stepped.drain()
        assert self.stepped.change(settings)
        rids = []
        for tokens, name in zip(prompts(), names, strict=True):
            rids.append(self.send(tokens, name))
            self.stepped.step(3)
        outputs = self.stepped.finish(*rids)
        self.cached = [self.stepped.reqs[rid].cached_tokens for rid in rids]
        return outputs

    def alone(self, tokens: Sequence[int], name: str | None) -> list[int]:
        """What stock scheduling answers to one prompt."""
        self.stepped.drain()
        assert self.stepped.change({"layered_prefill": 0})
        [output] = self.stepped.finish(self.send(tokens, name))
        self.stepped.drain()
        assert self.stepped.change({"layered_prefill": 1, "layered_num_groups": 4})
        return output

    @contextmanager
    def decoding(self, name: str | None) -> Iterator[str]:
        """Something decodes beside what is sent inside."""
        rid = self.send(prompt(5, 77), name, 200)
        self.stepped.step(2)
        yield rid
        self.stepped.abort(rid)
        self.stepped.step_until(self.stepped.scheduler.is_fully_idle)


def same(outputs: list[list[int]], expected: list[list[int]]) -> list[bool]:
    """Which of the answers are equal."""
    return [one == other for one, other in zip(outputs, expected, strict=True)]
