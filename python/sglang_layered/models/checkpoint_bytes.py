"""Bytes of a checkpoint's decoder layers, from the headers of its safetensors files; no tensor is loaded.

It knows the file format and the names `layers.N` and `experts`, no model family and no quantization method.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sglang_layered.models.tensor_names import is_expert, layer_of

INDEX_FILE = "model.safetensors.index.json"
PLAIN_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})  # in the names of the file format
LENGTH_BYTES = 8  # at a file's start: how long its header is, little endian


@dataclass(slots=True)
class Stored:
    """One part of a layer: its bytes, and whether some of its tensors hold packed or narrow weights."""

    num_bytes: int = 0
    is_quantized: bool = False


@dataclass(frozen=True, slots=True)
class StoredLayer:
    """A layer's routed experts, all together, and everything else of it."""

    experts: Stored
    dense: Stored


def read_stored_layers(model_path: str) -> dict[int, StoredLayer]:
    """Layers by number; empty where no safetensors file is on this machine."""
    layers: dict[int, StoredLayer] = defaultdict(lambda: StoredLayer(Stored(), Stored()))
    for file in _weight_files(model_path):
        for name, dtype, num_dims, num_bytes in _tensors(file):
            index = layer_of(name)
            if index is None or _is_index(dtype, num_dims):
                continue
            part = layers[index].experts if is_expert(name) else layers[index].dense
            part.num_bytes += num_bytes
            part.is_quantized |= dtype not in PLAIN_FLOATS
    return dict(layers)


def _weight_files(model_path: str) -> list[Path]:
    folder = _folder(model_path)
    if folder is None:
        return []
    if (folder / INDEX_FILE).is_file():
        names = set(json.loads((folder / INDEX_FILE).read_text())["weight_map"].values())
        files = [folder / name for name in sorted(names)]
        return files if all(file.is_file() for file in files) else []
    return sorted(file for file in folder.glob("*.safetensors") if not file.name.startswith("consolidated"))


def _folder(model_path: str) -> Path | None:
    """Where the files of a folder or of a model in the Hugging Face cache are; None: not on this machine."""
    if Path(model_path).is_dir():
        return Path(model_path)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model_path, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError):
        return None


def _tensors(file: Path) -> Iterator[tuple[str, str, int, int]]:
    """Name, dtype, number of dimensions and bytes of each tensor of a file."""
    with file.open("rb") as opened:
        header = json.loads(opened.read(int.from_bytes(opened.read(LENGTH_BYTES), "little")))
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            yield name, entry["dtype"], len(entry["shape"]), end - begin


def _is_index(dtype: str, num_dims: int) -> bool:
    """A row of integers, such as GPTQ's `g_idx`: an order of the weights, none of them."""
    return num_dims == 1 and dtype.startswith("I")
