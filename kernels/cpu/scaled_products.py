"""CPU references of the CUDA kernels that SGLang's FP8 layers call: rows made FP8, and products of both.

They compute in float64, so that a row's result does not depend on the rows beside it, and keep the calls of
the kernels: what is written, where. Which scales rows share is what SGLang asks for, never chosen here.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

FP8_LARGEST = 448.0
SMALLEST_SCALE = 1e-12


def quantize_by_row(rows: torch.Tensor, out: torch.Tensor, scales: torch.Tensor) -> None:
    """Write rows [n, inputs] as FP8 to `out`, each by a scale of its own, which go to `scales` [n, 1].

    `out` and `scales` may have more rows than are given; those stay as they are.
    """
    own = (rows.double().abs().amax(-1, keepdim=True) / FP8_LARGEST).clamp(min=SMALLEST_SCALE)
    scales[: len(rows)] = own
    out[: len(rows)] = as_fp8(rows, scales[: len(rows)])


def quantize_by_tensor(rows: torch.Tensor, out: torch.Tensor, scale: torch.Tensor, is_static: bool) -> None:
    """Write rows as FP8 to `out` by one scale; unless it is static, that of all rows is written there."""
    if not is_static:
        scale.fill_((rows.double().abs().max() / FP8_LARGEST).clamp(min=SMALLEST_SCALE).item())
    out.view(-1, rows.shape[-1])[: rows.numel() // rows.shape[-1]] = as_fp8(
        rows.reshape(-1, rows.shape[-1]), scale
    )


def quantize_by_group(rows: torch.Tensor, out: torch.Tensor, scales: torch.Tensor, group: int) -> None:
    """Write rows as FP8 to `out`, each `group` inputs of a row by a scale, which go to `scales`."""
    groups = rows.unflatten(-1, (-1, group))
    own = (groups.double().abs().amax(-1) / FP8_LARGEST).clamp(min=SMALLEST_SCALE)
    scales[: len(rows)] = own
    out[: len(rows)] = as_fp8(groups, scales[: len(rows), ..., None]).flatten(-2)


def scaled_product(
    rows: torch.Tensor,
    weight: torch.Tensor,
    row_scales: torch.Tensor,
    weight_scales: torch.Tensor,
    out_dtype: torch.dtype,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """FP8 rows [n, inputs] times FP8 weights [inputs, outputs], each with a scale of its own or one of all.

    Returns:
        [n, outputs] in `out_dtype`.
    """
    product = scaled(rows, row_scales) @ scaled(weight.t(), weight_scales).t()
    return (product if bias is None else product + bias.double()).to(out_dtype)


def sort_by_expert(
    topk_ids: torch.Tensor,
    num_experts: int,
    block_rows: int,
    sorted_ids: torch.Tensor,
    expert_ids: torch.Tensor,
    num_padded: torch.Tensor,
) -> None:
    """Order the choices of all rows by expert, each expert's padded to whole blocks by the number of all.

    Args:
        topk_ids: [rows, k]; those outside of the experts are nobody's.
        num_experts: how many there are.
        block_rows: choices of a block.
        sorted_ids: gets the choices, counted over all rows.
        expert_ids: gets the expert of each block.
        num_padded: gets how many of `sorted_ids` count.
    """
    chosen = topk_ids.flatten()
    sorted_ids.fill_(chosen.numel())
    at = 0
    for expert in range(num_experts):
        [mine] = torch.where(chosen == expert)
        sorted_ids[at : at + len(mine)] = mine.to(sorted_ids.dtype)
        num_blocks = -(-len(mine) // block_rows)
        expert_ids[at // block_rows : at // block_rows + num_blocks] = expert
        at += num_blocks * block_rows
    num_padded.fill_(at)


def experts_product(
    rows: torch.Tensor,
    weight_of: Callable[[int], torch.Tensor],
    out: torch.Tensor,
    shares: torch.Tensor | None,
    choices: tuple[torch.Tensor, torch.Tensor, int],
    block_rows: int,
    choices_of_row: int,
) -> None:
    """Each choice's row times the weights of its expert.

    Args:
        rows: [n, inputs].
        weight_of: gives an expert's weights [outputs, inputs] in float64.
        out: [choices, outputs], in any shape of so many rows; gets the products.
        shares: [choices] weights of the choices in a row's sum, or None: not yet.
        choices: `sorted_ids`, `expert_ids` and how many of the first count, as `sort_by_expert` gives them.
        block_rows: choices of a block.
        choices_of_row: how many choices have the same row.
    """
    sorted_ids, expert_ids, num_padded = choices
    flat, num_choices, wide = out.view(-1, out.shape[-1]), choices_of_row * len(rows), rows.double()
    ordered = sorted_ids[:num_padded].long()
    experts = expert_ids.repeat_interleave(block_rows)[:num_padded]
    for expert in experts.unique().tolist():
        mine = ordered[(experts == expert) & (ordered < num_choices)]
        product = wide[mine // choices_of_row] @ weight_of(expert).t()
        if shares is not None:
            product *= shares.flatten()[mine].double()[:, None]
        flat[mine] = product.to(out.dtype)


def scaled(numbers: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """[n, inputs] FP8 in float64, by one scale of all or by one a row; scales may have more rows."""
    wide = scales.double().reshape(-1, 1)
    return numbers.double() * (wide if len(wide) == 1 else wide[: len(numbers)])


def as_fp8(rows: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Rows as FP8, by scales that are as wide as they; what is too large becomes the largest."""
    return (rows.double() / scales.double()).clamp(-FP8_LARGEST, FP8_LARGEST).to(torch.float8_e4m3fn)
