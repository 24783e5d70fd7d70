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
from sglang_layered.models.layer_shapes import served_layer_shapes
from sglang_layered.upstream.experts import find_moe_layers
from sglang_layered.upstream.runner import layer_with_scratch

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SERVER: dict[str, Any] = {
    "page_size": 1,
    "layered_execution": "fused",
    "moe_runner_backend": "auto",
    "disable_cuda_graph": True,
    "max_running_requests": 16,
}


def check(case: dict[str, Any]) -> dict[str, Any]:
    """What is seen of a quantized model, how wrong its layers are, and what its experts weigh."""
    for config in set(QUANTIZATION_METHODS.values()):
        config.get_supported_act_dtypes = classmethod(lambda cls: DTYPES)
    stepped = SteppedScheduler(Path(case["model"]), **scenario.FLAGS | FLAGS | SERVER | case["flags"])
    asked = asked_for()
    seen, stock = check_ways(stepped, asked)
    compare_alone(seen, stepped, asked, stock)
    model_runner = stepped.scheduler.tp_worker.model_runner
    model, shapes = model_runner.model, served_layer_shapes(stepped.scheduler.model_config)
    return asdict(seen) | {
        "wrong": wrong(model, Path(case["floats"])),
        "bytes_loaded": [layer.expert_bytes for layer in find_moe_layers(model)],
        "bytes_read": [shape.expert_bytes / shape.num_experts for shape in shapes],
        "scratch": layer_with_scratch(model),
    }


def wrong(model: Any, floats: Path) -> dict[str, float]:
    """How far a layer is from what the checkpoint stands for: norms of errors beside those of the results."""
    weights = load_file(floats / "model.safetensors")

    def weight(name: str) -> torch.Tensor:
        return weights[f"model.layers.0.{name}.weight"].double()

    layer, plain = model.model.layers[0], model.lm_head.weight
    rows = torch.randn(7, plain.shape[1], generator=torch.Generator().manual_seed(0)).to(plain.dtype)
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
