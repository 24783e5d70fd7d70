"""Adapters for the tiny models, made at random, and what lets SGLang's LoRA run on a CPU."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

STRENGTH = 0.5  # an adapter's part of a module's output: enough to change most tokens
# The modules of the tiny models that adapters may change, with their output and input sizes: Qwen3-MoE's.
ATTENTION = {
    "self_attn.q_proj": (128, 128),
    "self_attn.k_proj": (64, 128),
    "self_attn.v_proj": (64, 128),
    "self_attn.o_proj": (128, 128),
}
# DeepSeek-V3's, of latent attention. Of DeepSeek-V2's SGLang does not adapt the plain q_proj.
LATENT = {
    "self_attn.q_a_proj": (48, 128),
    "self_attn.q_b_proj": (192, 48),
    "self_attn.kv_a_proj_with_mqa": (80, 128),
    "self_attn.kv_b_proj": (256, 64),
    "self_attn.o_proj": (128, 128),
}

EXPERTS = {
    f"mlp.experts.{expert}.{name}": shape
    for expert in range(16)
    for name, shape in {"gate_proj": (64, 128), "up_proj": (64, 128), "down_proj": (128, 64)}.items()
}


def make_adapter(
    folder: Path, seed: int, rank: int, num_layers: int, modules: Mapping[str, tuple[int, int]]
) -> Path:
    """Write an adapter of every layer; `modules` are paths in a layer with their output and input sizes."""
    generator, weights = torch.Generator().manual_seed(seed), {}
    for layer in range(num_layers):
        for path, (num_outputs, num_inputs) in modules.items():
            name = f"base_model.model.model.layers.{layer}.{path}"
            down = torch.randn(rank, num_inputs, generator=generator) / num_inputs**0.5
            up = torch.randn(num_outputs, rank, generator=generator) * STRENGTH / rank**0.5
            weights |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
    folder.mkdir(parents=True)
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "tiny",
        "bias": "none",
        "lora_dropout": 0.0,
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": sorted({path.rpartition(".")[2] for path in modules}),
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def merged(model: Path, adapter: Path | None) -> torch.nn.Module:
    """The model in transformers, an adapter added to its weights."""
    oracle: torch.nn.Module = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    if adapter is None:
        return oracle
    config = json.loads((adapter / "adapter_config.json").read_text())
    weights = load_file(adapter / "adapter_model.safetensors")
    for name, up in weights.items():
        if name.endswith(".lora_B.weight"):
            stem = name.removesuffix(".lora_B.weight")
            change = up @ weights[f"{stem}.lora_A.weight"] * (config["lora_alpha"] / config["r"])
            _weight(oracle, stem.removeprefix("base_model.model.")).data += change
    return oracle


def _weight(model: torch.nn.Module, path: str) -> torch.Tensor:
    """A module's weight; transformers has those of all experts in one, gates before the others."""
    experts, is_expert, rest = path.partition(".experts.")
    if not is_expert:
        return model.get_submodule(path).weight
    expert, name = rest.split(".")
    joined = model.get_submodule(f"{experts}.experts")
    if name == "down_proj":
        return joined.down_proj[int(expert)]
    return joined.gate_up_proj[int(expert)].chunk(2)[name == "up_proj"]


def leave_memory_unpinned(replace: Callable[[Any, str, Any], None] = setattr) -> None:
    """SGLang's LoRA pins host memory whatever the device is, and without an accelerator that raises."""

    def unpinned(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        @wraps(make)
        def call(*args: Any, pin_memory: bool = False, **kwargs: Any) -> torch.Tensor:
            return make(*args, **kwargs)

        return call

    # A device as a context learns torch's makers of tensors once, when it is first used. Would it learn those
    # below instead, transformers could not load a model in this process.
    with torch.device("cpu"):
        torch.empty(0)
    for name in ("tensor", "zeros", "empty", "arange"):
        replace(torch, name, unpinned(getattr(torch, name)))
    replace(torch.Tensor, "pin_memory", lambda tensor, *args, **kwargs: tensor)
