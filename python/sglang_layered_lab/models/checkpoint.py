"""Random weights, written file by file as safetensors; at most one file's tensors are in memory."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from sglang_layered_lab.models.recipe import DTYPE_BYTES, ModelRecipe
from sglang_layered_lab.models.tensors import Shard, TensorSpec, count_bytes, list_tensors, plan_shards

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
MAX_SHARD_BYTES = 1_000_000_000


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


def shard_names(num_shards: int) -> Iterator[str]:
    """Yield the file names that the loaders expect."""
    if num_shards == 1:
        yield "model.safetensors"
        return
    for index in range(1, num_shards + 1):
        yield f"model-{index:05d}-of-{num_shards:05d}.safetensors"


def write_weights(
    recipe: ModelRecipe,
    folder: Path,
    on_progress: Callable[[int], object],
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write all weights into `folder`; `on_progress` gets the bytes of each tensor as it is made."""
    shards = plan_shards(list_tensors(recipe), DTYPE_BYTES[recipe.dtype], max_shard_bytes)
    weight_map: dict[str, str] = {}
    for file_name, shard in zip(shard_names(len(shards)), shards, strict=True):
        _write_shard(recipe, shard, folder / file_name, on_progress)
        weight_map |= {tensor.name: file_name for tensor in shard.tensors}
    if len(shards) > 1:
        index = {"metadata": {"total_size": count_bytes(recipe)}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(
            json.dumps(index, indent=2) + "\n", encoding="utf-8"
        )


def _write_shard(recipe: ModelRecipe, shard: Shard, path: Path, on_progress: Callable[[int], object]) -> None:
    weights: dict[str, torch.Tensor] = {}
    for tensor in shard.tensors:
        weights[tensor.name] = random_tensor(tensor, recipe.seed, DTYPES[recipe.dtype])
        on_progress(weights[tensor.name].nbytes)
    try:
        save_file(weights, path, metadata={"format": "pt"})
    except SafetensorError as error:  # what a full disk becomes
        raise OSError(f"{path.name}: {error}") from error
    shutil.copymode(
        path.with_name("config.json"), path
    )  # safetensors makes files that only their owner can read
