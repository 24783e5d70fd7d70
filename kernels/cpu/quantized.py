"""CPU references of the native ops that SGLang's CPU methods of quantized weights call.

The native ones need AMX and their own layout of the weights. These take the layout that the checkpoint has.
They are in no list of `sgl_kernel`'s functions: who wants them puts them into `torch.ops.sgl_kernel` himself,
without `convert_weight_packed`, which SGLang takes for AMX.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Any

import torch
from sglang_layered_kernels.cpu.dequantize import (
    dequantize_fp8,
    dequantize_int4,
    dequantize_int8,
    dequantize_mxfp4,
)
from torch.nn import functional

from sglang_layered.errors import CpuKernelError

FP8_LARGEST = 448.0
INT8_LARGEST = 127
SMALLEST_SCALE = 1e-10


class Activations(StrEnum):
    """What the rows become before they meet FP8 weights."""

    KEPT = "kept"  # as SGLang's CPU op has them
    TOKEN_GROUPS = "token groups"  # FP8 with a scale for a block's inputs of one row, as on a GPU


class Method(IntEnum):
    """SGLang's numbers for the ways that experts are quantized (`CPUQuantMethod`)."""

    INT8_W8A8 = 1
    FP8_W8A16 = 2
    INT4_W4A8 = 3
    MXFP4 = 4


@dataclass(frozen=True, slots=True)
class QuantizedOps:
    """The ops, under the names that they have in `torch.ops.sgl_kernel`.

    `dtype` is what they compute in; results are in the dtype of the rows. Where rows are quantized, a last
    bit of float32 that depends on the rows beside can move a row to the next number: float64 leaves none.
    """

    activations: Activations = Activations.KEPT
    dtype: torch.dtype = torch.float32

    NAMES = (
        "fp8_scaled_mm_cpu",
        "int8_scaled_mm_with_quant",
        "int4_scaled_mm_cpu",
        "fused_experts_cpu",
        "convert_scale_packed",
    )

    def fp8_scaled_mm_cpu(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        scales: torch.Tensor,
        block: list[int],
        bias: torch.Tensor | None,
        out_dtype: torch.dtype,
        is_vnni: bool,
    ) -> torch.Tensor:
        """[rows, inputs] times FP8 weights with a scale a block, as `dequantize_fp8` takes them."""
        rows = self._fp8_rows(x, block[1])
        return self._linear(rows, dequantize_fp8(weight, scales, _pair(block), self.dtype), bias, out_dtype)

    def int8_scaled_mm_with_quant(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        scales: torch.Tensor,
        bias: torch.Tensor | None,
        out_dtype: torch.dtype,
        is_vnni: bool,
    ) -> torch.Tensor:
        """[rows, inputs], each row made int8 with a scale of its own, times int8 weights."""
        return self._linear(self._int8_rows(x), dequantize_int8(weight, scales, self.dtype), bias, out_dtype)

    def int4_scaled_mm_cpu(
        self,
        x: torch.Tensor,
        qweight: torch.Tensor,
        qzeros: torch.Tensor,
        scales: torch.Tensor,
        bias: torch.Tensor | None,
    ) -> torch.Tensor:
        """[rows, inputs] times AWQ or GPTQ weights; rows stay floats, as with the kernels of a GPU."""
        weight = dequantize_int4(qweight, qzeros, scales, x.shape[-1], self.dtype)
        return self._linear(x.to(self.dtype), weight, bias, x.dtype)

    def convert_scale_packed(self, scales: torch.Tensor) -> torch.Tensor:
        """Scales of MXFP4, which need no other layout here."""
        return scales

    def upcast_from_mxfp(
        self, weight: torch.Tensor, scales: torch.Tensor, target_dtype: torch.dtype, axis: int
    ) -> torch.Tensor:
        """MXFP4 weights as floats, packed along the last dimension.

        Upstream: triton_kernels/numerics_details/mxfp.py, the function of this name.
        """
        if axis != -1:
            raise CpuKernelError(f"upcast_from_mxfp: axis {axis}; only the last one is done here")
        return dequantize_mxfp4(weight, scales, self.dtype).to(target_dtype)

    def fused_experts_cpu(
        self,
        x: torch.Tensor,
        w13: torch.Tensor,
        w2: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        inplace: bool,
        method: int,
        w13_scales: torch.Tensor,
        w2_scales: torch.Tensor,
        w13_zeros: torch.Tensor | None,
        w2_zeros: torch.Tensor | None,
        block: list[int] | None,
        w13_bias: torch.Tensor | None,
        w2_bias: torch.Tensor | None,
        alpha: float | None,
        limit: float | None,
        is_vnni: bool,
        activation: str = "silu",
    ) -> torch.Tensor:
        """The routed experts of a layer: gate and up (`w13`), an activation, down (`w2`), weighted sums.

        Args:
            x: [rows, hidden].
            w13: of each expert 2 * intermediate outputs; gate above up, or with `alpha` in turns.
            w2: of each expert hidden outputs.
            topk_weights: [rows, k].
            topk_ids: [rows, k]; negative where no expert of this rank is meant.
            inplace: whether the result may take the place of `x`; it does not.
            method: a number of Method, of how the weights are quantized.
            w13_scales: and `w2_scales`, as the method's dequantize function takes them.
            w2_scales: see there.
            w13_zeros: and `w2_zeros`, of 4-bit integers.
            w2_zeros: see there.
            block: of FP8 weights.
            w13_bias: [experts, 2 * intermediate], or None.
            w2_bias: [experts, hidden], or None.
            alpha: of GPT-OSS's activation; None for SiLU.
            limit: where GPT-OSS's activation is cut off.
            is_vnni: whether the weights have the native op's layout; they never have.
            activation: of a layer without `alpha`.

        Returns:
            [rows, hidden] in the dtype of `x`.

        Raises:
            CpuKernelError: weights that are not quantized, or another activation than SiLU.
        """
        if alpha is None and activation != "silu":
            raise CpuKernelError(f"fused_experts_cpu: activation {activation} has no reference")
        if method not in tuple(Method):
            raise CpuKernelError(f"fused_experts_cpu: method {method} is not one of quantized weights")
        quantize = self._rows_of(Method(method), block)
        up_weight = self._weight_of(Method(method), w13, w13_scales, w13_zeros, block, x.shape[-1])
        ids = topk_ids.long()
        chosen = [(expert, *torch.where(ids == expert)) for expert in ids[ids >= 0].unique().tolist()]
        rows, output = quantize(x), torch.zeros(x.shape, dtype=self.dtype)
        for expert, row, slot in chosen:
            both = self._linear(rows[row], up_weight(expert), _of(w13_bias, expert), self.dtype)
            between = quantize(_activate(both, alpha, limit))
            down_weight = self._weight_of(Method(method), w2, w2_scales, w2_zeros, block, between.shape[-1])
            result = self._linear(between, down_weight(expert), _of(w2_bias, expert), self.dtype)
            output.index_add_(0, row, result * topk_weights[row, slot].to(self.dtype)[:, None])
        return output.to(x.dtype)

    def _rows_of(self, method: Method, block: list[int] | None) -> Callable[[torch.Tensor], torch.Tensor]:
        if method is Method.INT8_W8A8:
            return self._int8_rows
        if method is Method.FP8_W8A16:
            return lambda rows: self._fp8_rows(rows, _pair(block)[1])
        return lambda rows: rows.to(self.dtype)

    def _weight_of(
        self,
        method: Method,
        weight: torch.Tensor,
        scales: torch.Tensor,
        zeros: torch.Tensor | None,
        block: list[int] | None,
        inputs: int,
    ) -> Callable[[int], torch.Tensor]:
        """[outputs, inputs] of one expert at a time: all of them would be the model in floats."""

        def of(expert: int) -> torch.Tensor:
            own: tuple[Any, ...] = (weight[expert], scales[expert])
            if method is Method.FP8_W8A16:
                return dequantize_fp8(*own, _pair(block), self.dtype)
            if method is Method.INT8_W8A8:
                return dequantize_int8(*own, self.dtype)
            if method is Method.MXFP4:
                return dequantize_mxfp4(*own, self.dtype)
            assert zeros is not None, "4-bit integers have zero points"
            return dequantize_int4(weight[expert], zeros[expert], scales[expert], inputs, self.dtype)

        return of

    def _fp8_rows(self, rows: torch.Tensor, group: int) -> torch.Tensor:
        """Rows as FP8 would keep them, or as they are; [rows, inputs]."""
        rows = rows.to(self.dtype)
        if self.activations is Activations.KEPT:
            return rows
        groups = rows.unflatten(-1, (-1, group))
        return _fp8(groups, groups.abs().amax(-1, keepdim=True)).flatten(-2)

    def _int8_rows(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows as int8 with a scale a row would keep them."""
        rows = rows.to(self.dtype)
        scale = (rows.abs().amax(-1, keepdim=True) / INT8_LARGEST).clamp(min=SMALLEST_SCALE)
        return (rows / scale).round() * scale

    def _linear(
        self, rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, out_dtype: torch.dtype
    ) -> torch.Tensor:
        output = functional.linear(rows, weight)
        return (output if bias is None else output + bias.to(self.dtype)).to(out_dtype)


def _fp8(numbers: torch.Tensor, largest: torch.Tensor) -> torch.Tensor:
    scale = (largest / FP8_LARGEST).clamp(min=SMALLEST_SCALE)
    kept = (numbers / scale).clamp(-FP8_LARGEST, FP8_LARGEST).to(torch.float8_e4m3fn)
    return kept.to(numbers.dtype) * scale


def _activate(both: torch.Tensor, alpha: float | None, limit: float | None) -> torch.Tensor:
    """[rows, 2 * intermediate] to [rows, intermediate]."""
    if alpha is None:
        gate, up = both.chunk(2, dim=-1)
        return functional.silu(gate) * up
    gate, up = both[..., ::2], both[..., 1::2]
    if limit is not None:
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return gate * torch.sigmoid(gate * alpha) * (up + 1)


def _of(values: torch.Tensor | None, expert: int) -> torch.Tensor | None:
    return None if values is None else values[expert]


def _pair(block: list[int] | None) -> tuple[int, int]:
    if block is None:
        raise CpuKernelError("FP8 weights without blocks have no CPU op in SGLang")
    return block[0], block[1]
