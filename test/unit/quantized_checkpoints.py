"""Tiny checkpoints of quantized experts in the published layouts; bytes of an expert by what is written."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

EXPERTS, HIDDEN, INNER, GROUP, BLOCK = 4, 256, 128, 32, 64
PROJECTIONS = {"gate_proj": (INNER, HIDDEN), "up_proj": (INNER, HIDDEN), "down_proj": (HIDDEN, INNER)}
LAYER = "model.layers.0.mlp.experts"


def mxfp4() -> dict[str, torch.Tensor]:
    """GPT-OSS: all experts in one tensor, two 4-bit weights a byte, a scale for 32, biases."""
    rows = {"gate_up_proj": (2 * INNER, HIDDEN), "down_proj": (HIDDEN, INNER)}
    tensors = {}
    for name, (out, inner) in rows.items():
        tensors[f"{LAYER}.{name}_blocks"] = torch.zeros(EXPERTS, out, inner // 32, 16, dtype=torch.uint8)
        tensors[f"{LAYER}.{name}_scales"] = torch.zeros(EXPERTS, out, inner // 32, dtype=torch.uint8)
        tensors[f"{LAYER}.{name}_bias"] = torch.zeros(EXPERTS, out, dtype=torch.bfloat16)
    return tensors


def fp8_block() -> dict[str, torch.Tensor]:
    """DeepSeek-V3: a byte a weight, a float32 scale a block."""
    tensors = {}
    for expert in range(EXPERTS):
        for name, (out, inner) in PROJECTIONS.items():
            base = f"{LAYER}.{expert}.{name}"
            tensors[f"{base}.weight"] = torch.zeros(out, inner, dtype=torch.float8_e4m3fn)
            tensors[f"{base}.weight_scale_inv"] = torch.zeros(out // BLOCK, inner // BLOCK)
    return tensors


def gptq() -> dict[str, torch.Tensor]:
    """Eight 4-bit weights an int32 along the inputs, and the group of each input."""
    tensors = {}
    for expert in range(EXPERTS):
        for name, (out, inner) in PROJECTIONS.items():
            base = f"{LAYER}.{expert}.{name}"
            tensors[f"{base}.qweight"] = torch.zeros(inner // 8, out, dtype=torch.int32)
            tensors[f"{base}.qzeros"] = torch.zeros(inner // GROUP, out // 8, dtype=torch.int32)
            tensors[f"{base}.scales"] = torch.zeros(inner // GROUP, out, dtype=torch.float16)
            tensors[f"{base}.g_idx"] = torch.zeros(inner, dtype=torch.int32)
    return tensors


def awq() -> dict[str, torch.Tensor]:
    """Eight 4-bit weights an int32 along the outputs."""
    tensors = {}
    for expert in range(EXPERTS):
        for name, (out, inner) in PROJECTIONS.items():
            base = f"{LAYER}.{expert}.{name}"
            tensors[f"{base}.qweight"] = torch.zeros(inner, out // 8, dtype=torch.int32)
            tensors[f"{base}.qzeros"] = torch.zeros(inner // GROUP, out // 8, dtype=torch.int32)
            tensors[f"{base}.scales"] = torch.zeros(inner // GROUP, out, dtype=torch.float16)
    return tensors


def nvfp4() -> dict[str, torch.Tensor]:
    """ModelOpt: two 4-bit weights a byte, an FP8 scale for 16, a scale of each matrix, one of activations."""
    tensors = {}
    for expert in range(EXPERTS):
        for name, (out, inner) in PROJECTIONS.items():
            base = f"{LAYER}.{expert}.{name}"
            tensors[f"{base}.weight"] = torch.zeros(out, inner // 2, dtype=torch.uint8)
            tensors[f"{base}.weight_scale"] = torch.zeros(out, inner // 16, dtype=torch.float8_e4m3fn)
            tensors[f"{base}.weight_scale_2"] = torch.zeros(())
            tensors[f"{base}.input_scale"] = torch.zeros(())
    return tensors


def w8a8() -> dict[str, torch.Tensor]:
    """A byte a weight, a float32 scale for each output."""
    tensors = {}
    for expert in range(EXPERTS):
        for name, (out, inner) in PROJECTIONS.items():
            base = f"{LAYER}.{expert}.{name}"
            tensors[f"{base}.weight"] = torch.zeros(out, inner, dtype=torch.int8)
            tensors[f"{base}.weight_scale"] = torch.zeros(out, 1)
    return tensors


def wna16() -> dict[str, torch.Tensor]:
    """Compressed-tensors, symmetric: eight 4-bit weights an int32, and the shape before packing."""
    tensors = {}
    for expert in range(EXPERTS):
        for name, (out, inner) in PROJECTIONS.items():
            base = f"{LAYER}.{expert}.{name}"
            tensors[f"{base}.weight_packed"] = torch.zeros(out, inner // 8, dtype=torch.int32)
            tensors[f"{base}.weight_scale"] = torch.zeros(out, inner // GROUP, dtype=torch.float16)
            tensors[f"{base}.weight_shape"] = torch.zeros(2, dtype=torch.int64)
    return tensors


def write(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """As one safetensors file."""
    save_file(tensors, folder / "model.safetensors")


def expert_bytes(tensors: dict[str, torch.Tensor], *without: str) -> int:
    """Bytes of one expert of what is written, without tensors of these endings."""
    kept = [tensor for name, tensor in tensors.items() if not name.endswith(without or ("-",))]
    return sum(tensor.numel() * tensor.element_size() for tensor in kept) // EXPERTS
