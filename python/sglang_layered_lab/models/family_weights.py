"""A model of a family with random weights: transformers lays it out and writes it, the values are ours."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from sglang_layered_lab.models.checkpoint import DTYPES, random_tensor
from sglang_layered_lab.models.families import FamilyRecipe
from sglang_layered_lab.models.tensors import MATRIX_GAIN, QK_NORM_WEIGHT, TensorSpec

BIAS_STD = 0.05
ROUTER_BIAS_STD = 0.02  # beside scores between 0 and 1 that choose the experts
SINK_STD = 1.0
TRANSPOSED_EXPERTS = ("gpt_oss",)  # families that store an expert's matrices as [inputs, outputs]


def empty_model(recipe: FamilyRecipe, device: str = "meta") -> PreTrainedModel:
    """The model before it has our numbers; on the meta device it has none at all."""
    config = AutoConfig.for_model(recipe.model_type or recipe.arch, **recipe.config_fields())
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=DTYPES[recipe.dtype])


def count_family_parameters(recipe: FamilyRecipe) -> int:
    """Count the parameters of the model; tied ones once."""
    return sum(parameter.numel() for parameter in empty_model(recipe).parameters())


def write_family(recipe: FamilyRecipe, folder: Path, on_progress: Callable[[int], object]) -> None:
    """Write config.json and the weights; `on_progress` gets the bytes of each tensor as it is made."""
    model = empty_model(recipe, "cpu")
    done: set[int] = set()
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() in done:  # tied to an earlier one
            continue
        done.add(tensor.data_ptr())
        spec = tensor_spec(recipe, name, tuple(tensor.shape))
        tensor.copy_(random_tensor(spec, recipe.seed, tensor.dtype))
        on_progress(tensor.nbytes)
    model.save_pretrained(folder)
    if recipe.architecture:
        _rename(folder / "config.json", recipe.architecture)
    for path in folder.glob("*.safetensors"):
        shutil.copymode(folder / "config.json", path)  # the library writes them for their owner only


def _rename(config: Path, architecture: str) -> None:
    content = json.loads(config.read_text(encoding="utf-8")) | {"architectures": [architecture]}
    config.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def tensor_spec(recipe: FamilyRecipe, name: str, shape: tuple[int, ...]) -> TensorSpec:
    """How the values of one tensor are spread; `sglang_layered_lab.models.tensors` has the reasons."""
    if "embed_tokens" in name:
        return TensorSpec(name, shape, std=recipe.embedding_std)
    if "norm" in name:
        sharper = QK_NORM_WEIGHT - 1 if name.endswith(("q_norm.weight", "k_norm.weight")) else 0
        return TensorSpec(name, shape, mean=recipe.norm_weight + sharper)
    if "correction_bias" in name:
        return TensorSpec(name, shape, std=ROUTER_BIAS_STD)
    if "sinks" in name:
        return TensorSpec(name, shape, std=SINK_STD)
    if "bias" in name:
        return TensorSpec(name, shape, std=BIAS_STD)
    transposed = recipe.arch in TRANSPOSED_EXPERTS and len(shape) == 3
    return TensorSpec(name, shape, std=MATRIX_GAIN / shape[-2 if transposed else -1] ** 0.5)
