"""The CPU references of ops on quantized weights, against one number at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product

import pytest
import torch
from sglang_layered_kernels.cpu.quantized import Activations, Method, QuantizedOps

from sglang_layered.errors import CpuKernelError

ROWS, HIDDEN, INNER, EXPERTS, TOP_K, GROUP = 5, 32, 64, 4, 2, 16
BLOCK = [16, 32]
OPS = QuantizedOps(dtype=torch.float64)
FP4 = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
Weights = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor]  # with what they stand for


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def whole(low: int, high: int, *shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed))


def as_int32(nibbles: dict[int, int]) -> int:
    number = sum(value << (4 * place) for place, value in nibbles.items())
    return number - 2**32 if number >= 2**31 else number


def fp8_block(outputs: int, inputs: int, seed: int) -> Weights:
    weight = (random(outputs, inputs, seed=seed) * 50).to(torch.float8_e4m3fn)
    scales = random(math.ceil(outputs / BLOCK[0]), math.ceil(inputs / BLOCK[1]), seed=seed + 1).float()
    means = torch.zeros(outputs, inputs, dtype=torch.float64)
    for row, column in product(range(outputs), range(inputs)):
        scale = float(scales[row // BLOCK[0], column // BLOCK[1]])
        means[row, column] = float(weight[row, column].double()) * scale
    return weight, scales, None, means


def int8(outputs: int, inputs: int, seed: int) -> Weights:
    weight = whole(-127, 128, outputs, inputs, seed=seed).to(torch.int8)
    scales = random(outputs, 1, seed=seed).float()
    means = torch.zeros(outputs, inputs, dtype=torch.float64)
    for row, column in product(range(outputs), range(inputs)):
        means[row, column] = int(weight[row, column]) * float(scales[row, 0])
    return weight, scales, None, means


def int4(outputs: int, inputs: int, seed: int) -> tuple[torch.Tensor, ...]:
    numbers = whole(0, 16, inputs, outputs, seed=seed)
    zeros = whole(1, 16, inputs // GROUP, outputs, seed=seed + 1)
    scales = random(inputs // GROUP, outputs, seed=seed + 2).float()
    means = torch.zeros(outputs, inputs, dtype=torch.float64)
    for row, column in product(range(outputs), range(inputs)):
        group = column // GROUP
        means[row, column] = int(numbers[column, row] - zeros[group, row]) * float(scales[group, row])
    return numbers, zeros, scales, means


def packed_along_outputs(numbers: torch.Tensor, places: tuple[int, ...]) -> torch.Tensor:
    rows = [
        [as_int32({places[at]: int(row[start + at]) for at in range(8)}) for start in range(0, len(row), 8)]
        for row in numbers
    ]
    return torch.tensor(rows, dtype=torch.int32)


def awq(outputs: int, inputs: int, seed: int) -> Weights:
    numbers, zeros, scales, means = int4(outputs, inputs, seed)
    places = (0, 4, 1, 5, 2, 6, 3, 7)
    return packed_along_outputs(numbers, places), scales, packed_along_outputs(zeros, places), means


def gptq(outputs: int, inputs: int, seed: int) -> Weights:
    numbers, zeros, scales, means = int4(outputs, inputs, seed)
    weight = packed_along_outputs(numbers.t(), tuple(range(8))).t().contiguous()
    return weight, scales, packed_along_outputs(zeros - 1, tuple(range(8))), means


def mxfp4(outputs: int, inputs: int, seed: int) -> Weights:
    numbers = whole(0, 16, outputs, inputs, seed=seed)
    scales = whole(120, 132, outputs, inputs // 32, seed=seed).to(torch.uint8)
    packed = (numbers[:, 0::2] + 16 * numbers[:, 1::2]).to(torch.uint8)
    means = torch.zeros(outputs, inputs, dtype=torch.float64)
    for row, column in product(range(outputs), range(inputs)):
        number = int(numbers[row, column])
        size = FP4[number % 8] * 2.0 ** (int(scales[row, column // 32]) - 127)
        means[row, column] = -size if number >= 8 else size
    return packed, scales, None, means


MAKERS: dict[Method | str, Callable[[int, int, int], Weights]] = {
    Method.FP8_W8A16: fp8_block,
    Method.INT8_W8A8: int8,
    "awq": awq,
    "gptq": gptq,
    Method.MXFP4: mxfp4,
}


def int8_row(row: torch.Tensor) -> torch.Tensor:
    scale = max(abs(float(number)) for number in row) / 127
    return torch.tensor([round(float(number) / scale) * scale for number in row], dtype=torch.float64)


def rows_for(kind: Method | str, x: torch.Tensor) -> torch.Tensor:
    return torch.stack([int8_row(row) for row in x]) if kind is Method.INT8_W8A8 else x


def linear(kind: Method | str, x: torch.Tensor, weights: Weights, bias: torch.Tensor | None) -> torch.Tensor:
    weight, scales, zeros, _ = weights
    if kind is Method.FP8_W8A16:
        return OPS.fp8_scaled_mm_cpu(x, weight, scales, BLOCK, bias, x.dtype, True)
    if kind is Method.INT8_W8A8:
        return OPS.int8_scaled_mm_with_quant(x, weight, scales, bias, x.dtype, True)
    assert zeros is not None
    return OPS.int4_scaled_mm_cpu(x, weight, zeros, scales, bias)


@pytest.mark.parametrize("kind", [kind for kind in MAKERS if kind is not Method.MXFP4], ids=str)
@pytest.mark.parametrize("with_bias", [False, True])
def test_a_linear_layer(kind: Method | str, with_bias: bool) -> None:
    weights = MAKERS[kind](INNER, HIDDEN, 3)
    x, bias = random(ROWS, HIDDEN, seed=1), random(INNER, seed=2)
    expected = rows_for(kind, x) @ weights[3].t() + (bias if with_bias else 0)
    got = linear(kind, x, weights, bias if with_bias else None)
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("kind", MAKERS, ids=str)
@pytest.mark.parametrize("is_gpt_oss", [False, True])
def test_experts(kind: Method | str, is_gpt_oss: bool) -> None:
    up = [MAKERS[kind](2 * INNER, HIDDEN, seed) for seed in range(EXPERTS)]
    down = [MAKERS[kind](HIDDEN, INNER, 10 + seed) for seed in range(EXPERTS)]
    x = random(ROWS, HIDDEN, seed=1)
    ids = torch.stack(
        [torch.randperm(EXPERTS, generator=torch.Generator().manual_seed(row)) for row in range(ROWS)]
    )
    ids, shares = ids[:, :TOP_K].clone(), random(ROWS, TOP_K, seed=6)
    ids[2, 1] = -1  # another rank's
    biases = (
        (random(EXPERTS, 2 * INNER, seed=7), random(EXPERTS, HIDDEN, seed=8)) if is_gpt_oss else (None, None)
    )
    expected = torch.zeros_like(x)
    for row, slot in product(range(ROWS), range(TOP_K)):
        expert = int(ids[row, slot])
        if expert >= 0:
            expected[row] += shares[row, slot] * one_expert(
                kind, x[row], up[expert][3], down[expert][3], expert, biases
            )

    def stacked(part: int, weights: list[Weights]) -> torch.Tensor | None:
        parts = [one[part] for one in weights]
        return None if parts[0] is None else torch.stack([part for part in parts if part is not None])

    got = OPS.fused_experts_cpu(
        x, stacked(0, up), stacked(0, down), shares, ids, False,
        Method.INT4_W4A8 if isinstance(kind, str) else kind,
        stacked(1, up), stacked(1, down), stacked(2, up), stacked(2, down),
        BLOCK if kind is Method.FP8_W8A16 else None, *biases,
        *((1.702, 7.0) if is_gpt_oss else (None, None)), True,
    )  # fmt: skip
    torch.testing.assert_close(got, expected, atol=1e-9, rtol=1e-9)


def sigmoid(number: float) -> float:
    return 0.5 * (1 + math.tanh(number / 2))


def one_expert(
    kind: Method | str,
    row: torch.Tensor,
    up: torch.Tensor,
    down: torch.Tensor,
    expert: int,
    biases: tuple[torch.Tensor | None, torch.Tensor | None],
) -> torch.Tensor:
    """Oracle: a row through an expert, number by number between the two products."""
    both = up @ rows_for(kind, row[None])[0]
    inner = []
    if biases[0] is None:
        for at in range(INNER):
            gate, value = float(both[at]), float(both[INNER + at])
            inner.append(gate * sigmoid(gate) * value)
    else:
        both = both + biases[0][expert]
        for at in range(INNER):
            gate, value = min(float(both[2 * at]), 7.0), max(min(float(both[2 * at + 1]), 7.0), -7.0)
            inner.append(gate * sigmoid(1.702 * gate) * (value + 1))
    between = rows_for(kind, torch.tensor(inner, dtype=torch.float64)[None])[0]
    return down @ between + (0 if biases[1] is None else biases[1][expert])


def test_no_expert_of_this_rank_gives_nothing() -> None:
    weight, scales, _, _ = int8(2 * INNER, HIDDEN, 0)
    back, back_scales, _, _ = int8(HIDDEN, INNER, 1)
    ids = torch.full((ROWS, TOP_K), -1)
    got = OPS.fused_experts_cpu(
        random(ROWS, HIDDEN), weight[None], back[None], random(ROWS, TOP_K), ids, False, Method.INT8_W8A8,
        scales[None], back_scales[None], None, None, None, None, None, None, None, True,
    )  # fmt: skip
    assert not got.any()


def test_mxfp4_weights_as_floats() -> None:
    weight, scales, _, means = mxfp4(INNER, HIDDEN, 5)
    got = OPS.upcast_from_mxfp(weight, scales, target_dtype=torch.float64, axis=-1)
    assert torch.equal(got, means)
    with pytest.raises(CpuKernelError, match="axis 0"):
        OPS.upcast_from_mxfp(weight, scales, target_dtype=torch.float64, axis=0)


def test_fp8_rows_with_a_scale_for_each_group_of_a_row_do_not_depend_on_other_rows() -> None:
    weight, scales, _, means = fp8_block(INNER, HIDDEN, 3)
    x = random(ROWS, HIDDEN, seed=1)
    x[0] *= 100
    ops = QuantizedOps(Activations.TOKEN_GROUPS, torch.float64)
    together = ops.fp8_scaled_mm_cpu(x, weight, scales, BLOCK, None, x.dtype, True)
    alone = [ops.fp8_scaled_mm_cpu(row[None], weight, scales, BLOCK, None, x.dtype, True) for row in x]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-12, atol=0)
    largest = [float(x[row].abs().max()) for row in range(ROWS)]  # one group a row: a block has 32 inputs
    quantized = torch.stack(
        [
            torch.stack(
                [(number / size * 448).to(torch.float8_e4m3fn).double() * size / 448 for number in row]
            )
            for row, size in zip(x, largest, strict=True)
        ]
    )
    torch.testing.assert_close(together, quantized @ means.t(), atol=1e-9, rtol=1e-9)


def test_what_is_not_quantized_and_what_has_no_layout_is_refused() -> None:
    empty = torch.zeros(1)
    with pytest.raises(CpuKernelError, match="method 0"):
        OPS.fused_experts_cpu(
            empty, empty, empty, empty, empty, False, 0,
            empty, empty, None, None, None, None, None, None, None, True,
        )  # fmt: skip
    with pytest.raises(CpuKernelError, match="3 rows are of no layer with 32 inputs"):
        OPS.int4_scaled_mm_cpu(random(2, 32), torch.zeros(3, 4, dtype=torch.int32), empty, empty, None)
    with pytest.raises(CpuKernelError, match="without blocks"):
        OPS._rows_of(Method.FP8_W8A16, None)(empty)
