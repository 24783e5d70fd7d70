"""A quantized model on the emulated GPU, in a worker."""

from __future__ import annotations

from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from sglang.srt.layers.quantization import QUANTIZATION_METHODS
from torch.nn.functional import silu

import scenario
from harness import SteppedScheduler
from quantized_checks import FLAGS, asked_for, check_ways, compare_alone

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SERVER: dict[str, Any] = {
    "attention_backend": "fa3",
    "page_size": 1,
    "layered_execution": "fused",
    "moe_runner_backend": "auto",
    "disable_cuda_graph": True,
    "max_running_requests": 16,
}


def check(case: dict[str, Any]) -> dict[str, Any]:
    """What is seen of a quantized model."""
    for config in set(QUANTIZATION_METHODS.values()):
        config.get_supported_act_dtypes = classmethod(lambda cls: DTYPES)
    stepped = SteppedScheduler(Path(case["model"]), **scenario.FLAGS | FLAGS | SERVER | case["flags"])
    asked = asked_for()
    seen, stock = check_ways(stepped, asked)
    compare_alone(seen, stepped, asked, stock)
    return asdict(seen) | {"wrong": wrong(model_of(stepped), Path(case["floats"]))}


def model_of(stepped: SteppedScheduler) -> Any:
    return stepped.scheduler.tp_worker.model_runner.model


def wrong(model: Any, floats: Path) -> dict[str, float]:
    """How far layers are from those that the checkpoint stands for: errors beside the results, as norms."""
    weights = load_file(floats / "model.safetensors")

    def weight(name: str) -> torch.Tensor:
        return weights[f"model.layers.0.{name}.weight"].double()

    layer, rows = model.model.layers[0], torch.randn(7, model.config.hidden_size).to(model.lm_head.weight.dtype)
    wide, scores = rows.double(), layer.mlp.gate(rows)[0]
    joined = torch.cat([weight(f"self_attn.{name}_proj") for name in "qkv"])
    shares, chosen = scores.double().softmax(-1).topk(model.config.num_experts_per_tok)
    expected = torch.zeros_like(wide)
    for row, slot in product(range(len(rows)), range(chosen.shape[1])):
        expert = f"mlp.experts.{chosen[row, slot]}"
        gate, up, down = (weight(f"{expert}.{name}_proj") for name in ("gate", "up", "down"))
        inner = silu(gate @ wide[row]) * (up @ wide[row])
        expected[row] += shares[row, slot] / shares[row].sum() * (down @ inner)
    got = {
        "qkv_proj": (layer.self_attn.qkv_proj(rows)[0], wide @ joined.t()),
        "experts": (layer.mlp.experts(rows.clone(), layer.mlp.topk(rows, scores)), expected),
    }
    return {
        name: float((ours.double() - theirs).norm() / theirs.norm()) for name, (ours, theirs) in got.items()
    }
