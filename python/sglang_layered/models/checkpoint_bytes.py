"""What a checkpoint is made of, from its files' headers and its tensors' names; no tensor is loaded.

It knows the file format and the names `layers.N` and `experts`, no model family and no quantization method.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

INDEX_FILE = "model.safetensors.index.json"
PLAIN_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})  # in the names of the file format
INPUT_SCALES = (".input_scale", ".input_global_scale")
LENGTH_BYTES = 8  # at a file's start: how long its header is, little endian
LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.(.+)$")
EXPERT = re.compile(r"(?:^|\.)experts\.(?:(\d+)\.)?")


def has_quantized_weights(model_config: Any) -> bool:
    """Whether SGLang would load the weights of this model (an SGLang ModelConfig) as quantized ones.

    Its rule looks into config.json (`quantization_config`, `compression_config`), into the files that
    ModelOpt and ModelSlim leave beside it, and at `--quantization`.
    """
    from sglang.srt.utils import has_hf_quant_config

    if model_config.quantization is not None:
        return True
    # SGLang's rule yields no method for a ModelOpt algorithm that it does not know: it loads such weights as
    # plain ones. Asked for the file of a folder, SGLang would go on to the hub with the folder's path.
    folder = Path(model_config.model_path)
    if folder.is_dir():
        return (folder / "hf_quant_config.json").exists()
    return bool(has_hf_quant_config(model_config.model_path))


def declared_quantization(model_config: Any) -> Mapping[str, Any]:
    """What the checkpoint's configuration says of its weights (an SGLang ModelConfig); empty: nothing.

    A multimodal checkpoint says it of its language model, ModelOpt in a file beside config.json.
    """
    for config in (model_config.hf_config, model_config.hf_text_config):
        for name in ("quantization_config", "compression_config"):
            fields = getattr(config, name, None)
            if fields:
                return dict(fields if isinstance(fields, Mapping) else fields.to_dict())
    folder = checkpoint_folder(model_config.model_path)
    if folder is not None and (file := folder / "hf_quant_config.json").is_file():
        return dict(json.loads(file.read_text())["quantization"])
    return {}


def is_expert(name: str) -> bool:
    """Whether a parameter is part of routed experts."""
    return EXPERT.search(name) is not None


def expert_of(name: str) -> int | None:
    """The number of the expert where each is a module of its own, or None where one tensor has them all."""
    match = EXPERT.search(name)
    return int(match[1]) if match is not None and match[1] else None


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
    """Layers by number, with no scale of activations; empty where no safetensors file is on this machine."""
    # A checkpoint may have several stacks of layers, such as a vision tower's or those that draft tokens.
    stacks: dict[str, dict[int, StoredLayer]] = defaultdict(
        lambda: defaultdict(lambda: StoredLayer(Stored(), Stored()))
    )
    for file in _weight_files(model_path):
        for name, dtype, num_dims, num_bytes in _tensors(file):
            layer = LAYER.search(name)
            # A row of integers, such as GPTQ's `g_idx`, is an order of the weights and none of them.
            if layer is None or (num_dims == 1 and dtype.startswith("I")) or name.endswith(INPUT_SCALES):
                continue
            stored = stacks[name[: layer.start()]][int(layer[1])]
            part = stored.experts if is_expert(name) else stored.dense
            part.num_bytes += num_bytes
            part.is_quantized |= dtype not in PLAIN_FLOATS
    return max((dict(layers) for layers in stacks.values()), key=_num_bytes, default={})


def _num_bytes(layers: dict[int, StoredLayer]) -> int:
    return sum(layer.experts.num_bytes + layer.dense.num_bytes for layer in layers.values())


def _weight_files(model_path: str) -> list[Path]:
    folder = checkpoint_folder(model_path)
    if folder is None:
        return []
    if (folder / INDEX_FILE).is_file():
        names = set(json.loads((folder / INDEX_FILE).read_text())["weight_map"].values())
        files = [folder / name for name in sorted(names)]
        return files if all(file.is_file() for file in files) else []
    return sorted(file for file in folder.glob("*.safetensors") if not file.name.startswith("consolidated"))


def checkpoint_folder(model_path: str) -> Path | None:
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
