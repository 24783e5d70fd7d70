"""The CPU references of FP8, NVFP4, Marlin and W4A8 kernels, against one number at a time."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from sglang.srt.layers.quantization.marlin_utils import marlin_permute_scales
from sglang.srt.layers.quantization.w4afp8 import interleave_scales
from sglang_layered_kernels.cpu import marlin, nvfp4, w4a8
from sglang_layered_kernels.cpu.scaled_products import (
    experts_product,
    quantize_by_group,
    quantize_by_row,
    quantize_by_tensor,
    scaled,
    scaled_product,
    sort_by_expert,
)

from sglang_layered.errors import CpuKernelError

ROWS, INPUTS, OUTPUTS, EXPERTS, TOP_K = 5, 128, 64, 4, 2
FP8 = torch.float8_e4m3fn
FP4 = [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6]
FP8_NUMBERS = sorted(
    {
        sign * ((1 + part / 8) * 2.0 ** (exponent - 7) if exponent else part / 8 * 2.0**-6)
        for sign, exponent, part in product((1, -1), range(16), range(8))
        if (exponent, part) != (15, 7)
    }
)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def whole(low: int, high: int, *shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed))


def fp8(*shape: int, seed: int = 0) -> torch.Tensor:
    return (random(*shape, seed=seed) * 50).to(FP8)


def fp8_scales(*shape: int, seed: int = 0) -> torch.Tensor:
    """Positive, and normal numbers: SGLang keeps no others."""
    return (random(*shape, seed=seed).abs() * 50).clamp(min=2.0**-6).to(FP8)


def swizzled(scales: torch.Tensor) -> torch.Tensor:
    """[rows, groups] in blocks of 128 rows and 4 groups, the rows of a block in 32 times 4; bytes."""
    rows, columns = scales.shape
    blocks = torch.zeros(-(-rows // 128), columns // 4, 32, 4, 4, dtype=torch.uint8)
    for row, column in product(range(rows), range(columns)):
        place = (row // 128, column // 4, row % 32, row % 128 // 32, column % 4)
        blocks[place] = scales.view(torch.uint8)[row, column]
    return blocks.reshape(-1, columns)


def nearest_fp8(number: float) -> float:
    """The nearest FP8 number by looking at all."""
    return min(FP8_NUMBERS, key=lambda one: abs(one - number))


def test_rows_get_scales_of_their_own() -> None:
    rows, out, scales = random(ROWS, 32), torch.zeros(ROWS + 2, 32, dtype=FP8), torch.zeros(ROWS + 2, 1)
    quantize_by_row(rows, out, scales)
    for row in range(ROWS):
        scale = torch.tensor(max(abs(float(number)) for number in rows[row]) / 448).float().item()
        assert float(scales[row]) == scale
        for column in range(32):
            assert float(out[row, column]) == nearest_fp8(float(rows[row, column]) / scale)
    assert not out[ROWS:].float().any() and not scales[ROWS:].any()


def test_groups_of_a_row_get_scales_of_their_own() -> None:
    rows, out, scales = random(ROWS, 32), torch.zeros(ROWS, 32, dtype=FP8), torch.zeros(ROWS, 4)
    quantize_by_group(rows, out, scales, 8)
    for row, group in product(range(ROWS), range(4)):
        part, got = rows[row, 8 * group : 8 * group + 8], out[row, 8 * group : 8 * group + 8]
        alone, own = torch.zeros(1, 8, dtype=FP8), torch.zeros(1, 1)
        quantize_by_row(part[None], alone, own)
        assert scales[row, group] == own[0, 0]
        assert torch.equal(got.float(), alone[0].float())


@pytest.mark.parametrize("is_static", [False, True])
def test_all_rows_get_one_scale(is_static: bool) -> None:
    rows, out, scale = 9 * random(ROWS, 32), torch.zeros(ROWS, 32, dtype=FP8), torch.full((1,), 0.01)
    quantize_by_tensor(rows, out, scale, is_static)
    expected = 0.01 if is_static else max(abs(float(number)) for number in rows.flatten()) / 448
    assert float(scale) == pytest.approx(expected, rel=1e-6)
    for row, column in product(range(ROWS), range(32)):
        cut = min(max(float(rows[row, column]) / float(scale), -448.0), 448.0)
        assert float(out[row, column]) == nearest_fp8(cut)


@pytest.mark.parametrize("by_row", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
def test_a_product_of_fp8_numbers(by_row: bool, with_bias: bool) -> None:
    rows, weight, bias = fp8(ROWS, 16), fp8(6, 16, seed=1), random(6, seed=2)
    scales = (random(ROWS, 1, seed=3), random(6, 1, seed=4)) if by_row else (random(1), random(1, seed=5))
    got = scaled_product(rows, weight.t(), *scales, torch.float64, bias if with_bias else None)
    for row, output in product(range(ROWS), range(6)):
        total = math.fsum(float(rows[row, at]) * float(weight[output, at]) for at in range(16))
        total *= float(scales[0][row if by_row else 0]) * float(scales[1][output if by_row else 0])
        assert float(got[row, output]) == pytest.approx(total + (float(bias[output]) if with_bias else 0))


@pytest.mark.parametrize("is_second", [False, True])
def test_products_by_expert(is_second: bool) -> None:
    """The first product takes a row for all its choices, the second a row a choice, and weights results."""
    ids, shares = whole(0, EXPERTS, ROWS, TOP_K), random(ROWS, TOP_K, seed=1)
    ids[1, 0] = EXPERTS  # of another rank
    num_choices, block = ids.numel(), 4
    sorted_ids, expert_ids, num = (
        torch.empty(size, dtype=torch.int32) for size in (num_choices + EXPERTS * block, 8, 1)
    )
    sort_by_expert(ids, EXPERTS, block, sorted_ids, expert_ids, num)
    rows = fp8(num_choices if is_second else ROWS, 16)
    weight, scales = fp8(EXPERTS, 6, 16, seed=2), random(EXPERTS, seed=3)
    out = torch.zeros(ROWS, TOP_K, 6, dtype=torch.float64)
    experts_product(
        scaled(rows, torch.tensor(2.0)), lambda expert: scaled(weight[expert], scales[expert]), out,
        shares if is_second else None, (sorted_ids, expert_ids, int(num)), block, 1 if is_second else TOP_K,
    )  # fmt: skip
    for row, slot in product(range(ROWS), range(TOP_K)):
        expert = int(ids[row, slot])
        mine = rows[row * TOP_K + slot if is_second else row].double()
        expected = torch.zeros(6, dtype=torch.float64)
        if expert < EXPERTS:
            expected = 2 * scales[expert] * (weight[expert].double() @ mine)
            expected *= shares[row, slot] if is_second else 1
        torch.testing.assert_close(out[row, slot], expected)


def test_marlin_takes_four_bit_weights() -> None:
    group, numbers = 32, whole(0, 16, OUTPUTS, INPUTS)
    scales = random(OUTPUTS, INPUTS // group, seed=1)
    packed = torch.zeros(INPUTS // 8, OUTPUTS, dtype=torch.int64)
    for output, at in product(range(OUTPUTS), range(INPUTS)):
        packed[at // 8, output] += int(numbers[output, at]) << 4 * (at % 8)
    none = torch.empty(0, dtype=torch.int32)
    weight = marlin.repack(packed.to(torch.int32), none, INPUTS, OUTPUTS, 4)
    assert weight.shape == (INPUTS // 16, OUTPUTS * 2)
    permuted = marlin_permute_scales(scales.t().contiguous(), INPUTS, OUTPUTS, group)
    got = marlin.marlin_weight(weight, permuted, None, OUTPUTS)
    for output, at in product(range(OUTPUTS), range(INPUTS)):
        expected = (int(numbers[output, at]) - 8) * float(scales[output, at // group])
        assert float(got[output, at]) == pytest.approx(expected)
    with pytest.raises(CpuKernelError, match="8 bits"):
        marlin.repack(packed, none, INPUTS, OUTPUTS, 8)


def test_marlin_takes_nvfp4() -> None:
    from sglang.srt.layers.quantization import marlin_utils_fp4 as stock

    numbers, scales = whole(0, 16, OUTPUTS, INPUTS), fp8_scales(OUTPUTS, INPUTS // 16, seed=1)
    of_all = torch.tensor(2.0**-11)
    packed = (numbers[:, 0::2] + 16 * numbers[:, 1::2]).to(torch.uint8).view(torch.int32).t().contiguous()
    weight = marlin.repack(packed, torch.empty(0), INPUTS, OUTPUTS, 4)
    permuted = marlin_permute_scales(scales.t().contiguous().half(), INPUTS, OUTPUTS, 16)
    made = stock.nvfp4_marlin_process_scales(permuted)
    made_of_all = stock.nvfp4_marlin_process_global_scale(of_all.half())
    got = marlin.marlin_weight(weight, made, made_of_all, OUTPUTS)
    for output, at in product(range(OUTPUTS), range(INPUTS)):
        expected = FP4[int(numbers[output, at])] * float(scales[output, at // 16]) * 2.0**-11
        assert float(got[output, at]) == pytest.approx(expected)
    with pytest.raises(CpuKernelError, match="bfloat16"):
        marlin.marlin_weight(weight, made, made_of_all.bfloat16(), OUTPUTS)


def test_nvfp4_rows_are_the_nearest_numbers_by_the_scale_of_their_group() -> None:
    rows, scale = random(ROWS, 32), torch.tensor(300.0)
    packed, scales = nvfp4.quantize(rows, scale)
    got = nvfp4.widened(packed, scales)
    for row, group in product(range(ROWS), range(2)):
        numbers = [float(number) * 300 for number in rows[row, 16 * group : 16 * group + 16]]
        own = nearest_fp8(max(map(abs, numbers)) / 6)
        assert float(scales[row, group]) == own
        for at, number in enumerate(numbers):
            nearest = min(FP4, key=lambda value: abs(value * own - number))
            assert float(got[row, 16 * group + at]) == pytest.approx(nearest * own)


def test_scales_of_nvfp4_come_back_from_the_order_of_the_kernels() -> None:
    scales = fp8(256, 8)
    assert torch.equal(nvfp4.unswizzled(swizzled(scales)), scales.view(torch.uint8))


def test_experts_of_nvfp4() -> None:
    hidden, inner = 64, 64
    ids, shares = whole(0, EXPERTS, ROWS, TOP_K), random(ROWS, TOP_K, seed=1)
    weights = tuple(
        whole(0, 256, EXPERTS, out, size // 2, seed=out).to(torch.uint8)
        for out, size in ((2 * inner, hidden), (hidden, inner))
    )
    own = [fp8_scales(EXPERTS, 2 * inner, 4, seed=2), fp8_scales(EXPERTS, hidden, 4, seed=3)]
    given = [torch.stack([swizzled(scales) for scales in part]) for part in own]
    row_scale, inner_scale, alphas = torch.tensor(100.0), 1e-4 * torch.ones(EXPERTS), random(2, EXPERTS).abs()
    rows = random(ROWS, hidden, seed=4)
    got = nvfp4.fused_experts(
        rows, ids, shares, weights,  # type: ignore[arg-type]
        (row_scale, given[0], alphas[0], inner_scale, given[1], alphas[1]),
    )  # fmt: skip
    expected = torch.zeros(ROWS, hidden, dtype=torch.float64)
    for row, slot in product(range(ROWS), range(TOP_K)):
        expert = int(ids[row, slot])
        up_gate, down = (nvfp4.widened(weights[at][expert], own[at][expert]) for at in range(2))
        both = alphas[0, expert] * (
            up_gate @ nvfp4.widened(*nvfp4.quantize(rows[row : row + 1], row_scale))[0]
        )
        activated = torch.nn.functional.silu(both[inner:]) * both[:inner]
        between = nvfp4.widened(*nvfp4.quantize(activated[None], inner_scale[expert]))[0]
        expected[row] += shares[row, slot] * alphas[1, expert] * (down @ between)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("num_groups", [1, 4])
def test_w4a8_weights(num_groups: int) -> None:
    inputs = 128 * num_groups
    numbers, scales = whole(-8, 8, 1, 6, inputs), random(1, 6, num_groups, seed=1)
    packed = ((numbers[..., 0::2] % 16) + 16 * (numbers[..., 1::2] % 16)).to(torch.uint8).view(torch.int8)
    got = w4a8.int4_weight(packed[0], interleave_scales(scales)[0])
    for output, at in product(range(6), range(inputs)):
        expected = int(numbers[0, output, at]) * float(scales[0, output, at // 128])
        assert float(got[output, at]) == pytest.approx(expected)


def test_w4a8_experts() -> None:
    """All kernels in SGLang's order, against each choice by itself."""
    ids, shares, scale = whole(0, EXPERTS, ROWS, TOP_K), random(ROWS, TOP_K, seed=1), torch.tensor([0.02])
    rows, weight_scales = random(ROWS, 128, seed=2), random(EXPERTS, 1, 6, seed=3)
    weight = whole(-128, 128, EXPERTS, 6, 64, seed=4).to(torch.int8)
    places, ordered = w4a8.places_by_expert(ids), torch.zeros(ROWS * TOP_K, 128, dtype=FP8)
    w4a8.quantize_in_order(rows, ordered, places, ids, scale)
    offsets, sizes = torch.zeros(EXPERTS + 1, dtype=torch.int32), torch.zeros(EXPERTS, 3, dtype=torch.int32)
    w4a8.first_rows(ids, EXPERTS, offsets, sizes)
    out = torch.zeros(ROWS * TOP_K, 6, dtype=torch.float64)
    w4a8.multiply_by_expert(out, ordered, weight, scale, weight_scales, offsets[:-1], sizes)
    inner, total = torch.zeros(ROWS * TOP_K, 3, dtype=FP8), torch.zeros(ROWS, 6, dtype=torch.float64)
    w4a8.activate_and_quantize(out, inner, torch.tensor([0.5]))
    w4a8.add_choices(out, total, places, shares, 2.0)
    expected = torch.zeros(ROWS, 6, dtype=torch.float64)
    for row, slot in product(range(ROWS), range(TOP_K)):
        expert, place = int(ids[row, slot]), int(places[row * TOP_K + slot])
        kept = torch.tensor([nearest_fp8(float(number) / float(scale)) for number in rows[row]]).double()
        own = w4a8.int4_weight(weight[expert], weight_scales[expert]) @ (kept * float(scale))
        torch.testing.assert_close(out[place], own)
        expected[row] += 2 * shares[row, slot] * own
        for at in range(3):
            gate, up = float(own[at]), float(own[3 + at])
            number = min(max(gate / (1 + math.exp(-gate)) * up / 0.5, -448.0), 448.0)
            assert float(inner[place, at]) == nearest_fp8(number)
    torch.testing.assert_close(total, expected)
