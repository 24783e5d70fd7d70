"""One weight in the layout of a quantization method, and the floats that this stands for.

[outputs, inputs] unless a function says otherwise. It knows no model and no file.
"""

from dataclasses import dataclass

import torch

from sglang_layered.errors import ModelRecipeError

BLOCK = 32  # outputs and inputs that share an FP8 scale; releases have 128, wider than tiny layers
GROUP = 32  # inputs that share a scale
NVFP4_GROUP = 16
NVFP4_SCALE_OF_ALL = 2.0**-11  # for weights of up to 1.3
W4AFP8_GROUP = 128  # SGLang takes no other, and no other block for the FP8 layers beside
FP8_LARGEST, FP8_SMALLEST_NORMAL, INT8_LARGEST, INT4_LARGEST = 448.0, 2.0**-6, 127, 15
FP4_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
FP4_LARGEST, FP4_LARGEST_EXPONENT, E8M0_BIAS = 6.0, 2, 127
SMALLEST_SCALE = 1e-10
AWQ_NIBBLES = (0, 4, 1, 5, 2, 6, 3, 7)  # which nibble holds each of eight outputs
# Stands for what a calibration finds: larger activations are cut off.
LARGEST_ACTIVATION = 32.0


@dataclass(frozen=True, slots=True)
class Quantized:
    """A weight as it is stored, by what its names end in, and the floats that this stands for."""

    stored: dict[str, torch.Tensor]
    floats: torch.Tensor


def fp8_block(weight: torch.Tensor, block: int = BLOCK) -> Quantized:
    """FP8 with a float32 scale for a square of weights, as DeepSeek-V3's."""
    outputs, inputs = weight.shape
    padded = torch.nn.functional.pad(weight, (0, -inputs % block, 0, -outputs % block))
    blocks = padded.unflatten(0, (-1, block)).unflatten(2, (-1, block))
    scales = (blocks.abs().amax((1, 3)) / FP8_LARGEST).clamp(min=SMALLEST_SCALE)
    wide = scales.repeat_interleave(block, 0).repeat_interleave(block, 1)[:outputs, :inputs]
    kept = (weight / wide).to(torch.float8_e4m3fn)
    return Quantized({"weight": kept, "weight_scale_inv": scales}, kept.float() * wide)


def int8_channel(weight: torch.Tensor) -> Quantized:
    """Int8 with a float32 scale an output."""
    scales = (weight.abs().amax(1, keepdim=True) / INT8_LARGEST).clamp(min=SMALLEST_SCALE)
    kept = (weight / scales).round().to(torch.int8)
    return Quantized({"weight": kept, "weight_scale": scales}, kept.float() * scales)


def awq(weight: torch.Tensor) -> Quantized:
    """Eight 4-bit weights an int32 along the outputs, which are in AWQ's order."""
    kept, zeros, scales, floats = _int4(weight)
    stored = {
        "qweight": _packed(kept.unflatten(1, (-1, 8)), AWQ_NIBBLES),
        "qzeros": _packed(zeros.unflatten(1, (-1, 8)), AWQ_NIBBLES),
        "scales": scales,
    }
    return Quantized(stored, floats)


def gptq(weight: torch.Tensor) -> Quantized:
    """Eight 4-bit weights an int32 along the inputs, zero points less one."""
    kept, zeros, scales, floats = _int4(weight)
    stored = {
        "qweight": _packed(kept.unflatten(0, (-1, 8)).transpose(1, 2), range(8)),
        "qzeros": _packed((zeros - 1).unflatten(1, (-1, 8)), range(8)),
        "scales": scales,
        "g_idx": (torch.arange(weight.shape[1]) // GROUP).to(torch.int32),
    }
    return Quantized(stored, floats)


def mxfp4(weight: torch.Tensor) -> Quantized:
    """FP4 with a power of two for 32 inputs; [experts, inputs, outputs], as transformers has them."""
    groups = weight.transpose(1, 2).unflatten(-1, (-1, GROUP))
    exponents = groups.abs().amax(-1).clamp(min=SMALLEST_SCALE).log2().floor() - FP4_LARGEST_EXPONENT
    nearest = _nearest_fp4(groups / exponents.exp2()[..., None])
    floats = (torch.tensor(FP4_VALUES)[nearest] * exponents.exp2()[..., None]).flatten(-2).transpose(1, 2)
    return Quantized(
        {"_blocks": _fp4_pairs(nearest), "_scales": (exponents + E8M0_BIAS).to(torch.uint8)}, floats
    )


def _int4(weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Numbers of 0 to 15 [inputs, outputs], zero points and float16 scales of each group, and the floats."""
    groups = weight.t().unflatten(0, (-1, GROUP))
    low, high = groups.amin(1), groups.amax(1)
    scales = ((high - low) / INT4_LARGEST).clamp(min=SMALLEST_SCALE).half().clamp(min=1e-7)
    wide = scales.float()[:, None]
    zeros = (-low / scales.float()).round().clamp(1, INT4_LARGEST)  # GPTQ stores them less one
    kept = (groups / wide + zeros[:, None]).round().clamp(0, INT4_LARGEST)
    floats = ((kept - zeros[:, None]) * wide).flatten(0, 1).t()
    return kept.flatten(0, 1).long(), zeros.long(), scales, floats


def _packed(numbers: torch.Tensor, nibbles: range | tuple[int, ...]) -> torch.Tensor:
    """[..., 8] numbers of 0 to 15 as [...] int32."""
    total = sum(
        (numbers[..., at] << (4 * nibble) for at, nibble in enumerate(nibbles)), start=torch.tensor(0)
    )
    return torch.where(total >= 2**31, total - 2**32, total).to(torch.int32)


def fp8_channel(weight: torch.Tensor) -> Quantized:
    """FP8 with a float32 scale an output."""
    scales = (weight.abs().amax(1, keepdim=True) / FP8_LARGEST).clamp(min=SMALLEST_SCALE)
    kept = (weight / scales).to(torch.float8_e4m3fn)
    return Quantized({"weight": kept, "weight_scale": scales}, kept.float() * scales)


def fp8_tensor(weight: torch.Tensor) -> Quantized:
    """FP8 with one float32 scale, and another one for the activations."""
    scale = (weight.abs().max() / FP8_LARGEST).clamp(min=SMALLEST_SCALE)
    kept = (weight / scale).to(torch.float8_e4m3fn)
    stored = {"weight": kept, "weight_scale": scale, "input_scale": _input_scale(FP8_LARGEST)}
    return Quantized(stored, kept.float() * scale)


def w4a16(weight: torch.Tensor) -> Quantized:
    """Eight 4-bit weights an int32 along the inputs, 8 the zero of all, a float16 scale a group."""
    outputs, inputs = weight.shape
    kept, scales, floats = _int4_around_zero(weight, GROUP, torch.float16)
    stored = {
        "weight_packed": _packed((kept + 8).unflatten(1, (-1, 8)), range(8)),
        "weight_scale": scales,
        "weight_shape": torch.tensor([outputs, inputs]),
    }
    return Quantized(stored, floats)


def w4afp8(weight: torch.Tensor) -> Quantized:
    """Two 4-bit weights a byte along the inputs, a bfloat16 scale a group, and one of the activations.

    Raises:
        ModelRecipeError: the inputs are no whole groups.
    """
    if weight.shape[1] % W4AFP8_GROUP:
        raise ModelRecipeError(
            f"--quantization w4afp8 has a scale for {W4AFP8_GROUP} inputs and these experts have"
            f" {weight.shape[1]}; choose another --preset"
        )
    kept, scales, floats = _int4_around_zero(weight, W4AFP8_GROUP, torch.bfloat16)
    nibbles = (kept & 15).unflatten(1, (-1, 2))
    packed = (nibbles[..., 0] | (nibbles[..., 1] << 4)).to(torch.uint8).view(torch.int8)
    stored = {
        "weight": packed,
        "weight_scale_inv": scales,
        "input_scale": _input_scale(FP8_LARGEST).bfloat16(),
    }
    return Quantized(stored, floats)


def nvfp4(weight: torch.Tensor) -> Quantized:
    """Two FP4 weights a byte along the inputs, an FP8 scale for 16, one of all, and one of the activations.

    That of all is the same for every weight: SGLang keeps one for those that it joins, as releases have it.
    """
    groups = weight.unflatten(1, (-1, NVFP4_GROUP))
    of_all = torch.tensor(NVFP4_SCALE_OF_ALL)
    scales = groups.abs().amax(2) / FP4_LARGEST / of_all
    scales = scales.clamp(FP8_SMALLEST_NORMAL, FP8_LARGEST).to(torch.float8_e4m3fn)
    wide = scales.float()[..., None] * of_all
    nearest = _nearest_fp4(groups / wide)
    stored = {
        "weight": _fp4_pairs(nearest.flatten(1)),
        "weight_scale": scales,
        "weight_scale_2": of_all,
        "input_scale": _input_scale(FP4_LARGEST * FP8_LARGEST),
    }
    return Quantized(stored, (torch.tensor(FP4_VALUES)[nearest] * wide).flatten(1))


def _input_scale(largest_number: float) -> torch.Tensor:
    return torch.tensor(LARGEST_ACTIVATION / largest_number)


def _int4_around_zero(
    weight: torch.Tensor, group: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Numbers of -8 to 7, scales [outputs, inputs / group] in `dtype`, and the floats."""
    groups = weight.unflatten(1, (-1, group))
    scales = (groups.abs().amax(2) / 7).clamp(min=SMALLEST_SCALE).to(dtype)
    wide = scales.float()[..., None]
    kept = (groups / wide).round().clamp(-8, 7)
    return kept.flatten(1).long(), scales, (kept * wide).flatten(1)


def _nearest_fp4(numbers: torch.Tensor) -> torch.Tensor:
    """Which of FP4_VALUES is nearest."""
    return (numbers[..., None] - torch.tensor(FP4_VALUES)).abs().argmin(-1)


def _fp4_pairs(numbers: torch.Tensor) -> torch.Tensor:
    """[..., n] numbers of 0 to 15 as [..., n / 2] bytes, the first in the low bits."""
    return (numbers[..., 0::2] | (numbers[..., 1::2] << 4)).to(torch.uint8)
