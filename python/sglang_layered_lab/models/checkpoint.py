"""Random weights as safetensors, and the config.json of a family.

Tensors that this package lays out are written file by file, with at most one file's in memory. A model of a
family is laid out and written by transformers; the values are ours.
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from sglang_layered_lab.models.recipe import DTYPE_BYTES, FamilyRecipe, Recipe
from sglang_layered_lab.models.tensors import TensorSpec, list_tensors, tensor_spec

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
MAX_SHARD_BYTES = 1_000_000_000
# Kinds of layers that transformers 5.19 writes by other names than released files have, which SGLang reads.
RELEASED_KINDS = {"linear_attention": "mamba", "full_attention": "attention"}


def random_tensor(tensor: TensorSpec, seed: int, dtype: torch.dtype) -> torch.Tensor:
    """Return the values of one tensor, decided by `seed`, name and shape, whatever tensors came before.

    They are drawn in float32 and then rounded, so a bfloat16 model is the rounding of the float32 one.
    """
    values = torch.empty(tensor.shape, dtype=torch.float32)
    if tensor.std == 0.0:
        return values.fill_(tensor.mean).to(dtype)
    digest = hashlib.sha256(f"{seed}:{tensor.name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))
    return values.normal_(tensor.mean, tensor.std, generator=generator).to(dtype)


def write_config(recipe: Recipe, folder: Path) -> None:
    """Write config.json of a model whose tensors this package lays out."""
    fields = recipe.config_fields()
    if isinstance(recipe, FamilyRecipe):
        names = {"architectures": [recipe.architecture], "model_type": recipe.arch, "dtype": recipe.dtype}
        fields = names | fields
    write_json(folder / "config.json", fields)


def write_weights(
    recipe: Recipe,
    folder: Path,
    on_progress: Callable[[int], object],
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write all weights into `folder`; `on_progress` gets the bytes of each tensor as it is made."""
    tensors = {tensor.name: tensor for tensor in list_tensors(recipe)}
    shards = split_state_dict_into_shards_factory(
        tensors,
        get_storage_size=lambda tensor: tensor.num_elements * DTYPE_BYTES[recipe.dtype],
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_bytes,
    )
    for file_name, names in shards.filename_to_tensors.items():
        weights: dict[str, torch.Tensor] = {}
        for name in names:
            weights[name] = random_tensor(tensors[name], recipe.seed, DTYPES[recipe.dtype])
            on_progress(weights[name].nbytes)
        write_file(weights, folder / file_name, like=folder / "config.json")
    if shards.is_sharded:
        index = {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename}
        write_json(folder / "model.safetensors.index.json", index)


def write_file(weights: dict[str, torch.Tensor], path: Path, like: Path) -> None:
    """Write one file of weights with the mode of `like`; what a full disk becomes is an OSError."""
    try:
        save_file(weights, path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(f"{path.name}: {error}") from error
    shutil.copymode(like, path)  # safetensors makes files that only their owner can read


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write one file of JSON."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def empty_model(recipe: FamilyRecipe, device: str = "meta") -> Any:
    """The model before it has our numbers; on the meta device it has none at all."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    config = AutoConfig.for_model(recipe.model_type or recipe.arch, **recipe.config_fields())
    with torch.device(device):
        auto = AutoModelForImageTextToText if recipe.around else AutoModelForCausalLM
        return auto.from_config(config, dtype=DTYPES[recipe.dtype])


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
    if recipe.turns_experts:
        weights = {
            name: weight.mT.contiguous() if ".experts." in name else weight
            for name, weight in model.state_dict().items()
        }
        write_file(weights, folder / "model.safetensors", like=folder / "config.json")
    for ours, released in recipe.renames.items():
        path = folder / "model.safetensors"
        weights = {
            released + name.removeprefix(ours) if name.startswith(ours) else name: weight
            for name, weight in load_file(path).items()
        }
        write_file(weights, path, like=folder / "config.json")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    own: dict[str, Any] = {"architectures": [recipe.architecture]} if recipe.architecture else {}
    if recipe.released:
        fields = recipe.config_fields()["text_config"] | recipe.released
        own["text_config"] = config["text_config"] | fields
    for name in ("layers_block_type", "mtp_layers_block_type"):
        if name in config:
            own[name] = [RELEASED_KINDS.get(kind, kind) for kind in config[name]]
    if own:
        write_json(folder / "config.json", config | own)
    for path in folder.glob("*.safetensors"):
        shutil.copymode(folder / "config.json", path)  # the library writes them for their owner only
