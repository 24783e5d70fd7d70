"""torch in place of the kernels that a step launches around its attention: norms, rotary embedding, experts.

What calls them stays SGLang's. A model that calls another kernel fails loudly; its reference belongs here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import silu

from memory_watch import as_kernel

LIBRARIES: list[Any] = []  # kept: what a torch library registers ends with it


def emulate_kernels() -> None:
    """Put them where SGLang calls the kernels."""
    register("sgl_kernel", SGL_KERNELS)
    import sglang.kernels.ops.activation.activation
    import sglang.kernels.ops.attention.rope  # noqa: F401  (both define operators)

    register("sglang", SGLANG_KERNELS)
    _patch_modules()


def register(namespace: str, kernels: dict[str, Any]) -> None:
    """Let operators of a namespace run these."""
    library = torch.library.Library(namespace, "IMPL")
    LIBRARIES.append(library)
    for name, kernel in kernels.items():
        library.impl(name, kernel, "CPU")


def _patch_modules() -> None:
    import flashinfer.norm as flashinfer_norm
    import sglang.kernels.ops.attention.clamp_position as clamp
    import sglang.kernels.ops.moe.moe_fused_gate as gate
    import sglang.srt.layers.moe.moe_runner.triton_utils.fused_moe as fused_moe
    import sglang.srt.layers.moe.topk as topk
    import sglang.srt.mem_cache.memory_pool as memory_pool
    import sglang.srt.model_executor.forward_batch_info as batch_info
    import sglang.srt.models.utils as model_utils

    topk.biased_grouped_topk = topk.biased_grouped_topk_impl  # SGLang's own, in torch
    memory_pool.set_mla_kv_buffer_triton = store_latent
    model_utils.fused_inplace_qknorm = norm_heads
    model_utils.can_use_fused_inplace_qknorm = lambda *args: True
    fused_moe.fused_experts = run_experts
    gate.moe_fused_gate = choose_by_gate
    flashinfer_norm.rmsnorm = norm_by_flashinfer
    flashinfer_norm.fused_add_rmsnorm = add_and_norm
    clamp.clamp_position_cuda = last_positions
    for name in ("clamp_position", "clamp_position_cuda"):
        if hasattr(batch_info, name):
            setattr(batch_info, name, last_positions)


def normed(rows: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """RMS norm in float32, given back in the dtype of the rows."""
    wide = rows.float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (wide * scale * weight.float()).to(rows.dtype)


@as_kernel("out")
def norm_into(
    out: torch.Tensor, rows: torch.Tensor, weight: torch.Tensor, eps: float, pdl: bool = False
) -> torch.Tensor:
    return out.copy_(normed(rows, weight, eps))


def norm_by_flashinfer(
    rows: torch.Tensor,
    weight: torch.Tensor,
    eps: float = 1e-6,
    out: torch.Tensor | None = None,
    enable_pdl: bool | None = None,
) -> torch.Tensor:
    return norm_into(torch.empty_like(rows) if out is None else out, rows, weight, eps)


def norm_out(out: Any, rows: Any, weight: Any, eps: float, pdl: bool) -> None:
    norm_into(out, rows, weight, eps)


@as_kernel("rows", "residual")
def add_and_norm(rows: Any, residual: Any, weight: Any, eps: float = 1e-6, pdl: bool | None = None) -> None:
    residual.copy_((rows.float() + residual.float()).to(residual.dtype))
    rows.copy_(normed(residual, weight, eps))


@as_kernel("q", "k")
def norm_heads(q: Any, k: Any, q_weight: Any, k_weight: Any, head_dim: int, eps: float) -> None:
    q.copy_(normed(q, q_weight, eps))
    k.copy_(normed(k, k_weight, eps))


def gated(out: torch.Tensor, rows: torch.Tensor) -> None:
    gate, up = rows.float().chunk(2, dim=-1)
    out.copy_((silu(gate) * up).to(out.dtype))


def activate(op_name: str, rows: torch.Tensor, out: torch.Tensor) -> None:
    if op_name != "silu":
        raise NotImplementedError(f"no reference for activation {op_name}")
    gated(out, rows)


def rotate(positions: Any, q: Any, k: Any, head_size: int, cos_sin_cache: Any, is_neox: bool = True) -> None:
    """In place; the table holds [cos, sin] of each position."""
    table = cos_sin_cache[positions].float()
    for rows in (q, k):
        if rows is not None:
            heads = rows.view(rows.shape[0], -1, head_size)
            _rotate_part(heads[..., : table.shape[-1]], table, is_neox)


def _rotate_part(part: torch.Tensor, table: torch.Tensor, is_neox: bool) -> None:
    cos, sin = table.unsqueeze(1).chunk(2, dim=-1)
    first, second = part.chunk(2, dim=-1) if is_neox else (part[..., 0::2], part[..., 1::2])
    turned = first.float() * cos - second.float() * sin, second.float() * cos + first.float() * sin
    first.copy_(turned[0].to(part.dtype))
    second.copy_(turned[1].to(part.dtype))


def rotate_heads(
    q: Any, k: Any, cos_sin_cache: Any, positions: Any, *, is_neox: bool, rope_dim: int = 0
) -> None:
    assert rope_dim in (0, cos_sin_cache.shape[-1]), rope_dim
    for heads in (q, k):
        _rotate_part(heads[..., : cos_sin_cache.shape[-1]], cos_sin_cache[positions].float(), is_neox)


def rotate_and_store(
    q: Any,
    k: Any,
    v: Any,
    k_cache: Any,
    v_cache: Any,
    cos_sin_cache: Any,
    positions: Any,
    out_loc: Any,
    *,
    is_neox: bool,
    rope_dim: int = 0,
) -> None:
    """The rotated keys and the values go to the KV cache, too."""
    rotate_heads(q, k, cos_sin_cache, positions, is_neox=is_neox, rope_dim=rope_dim)
    for cache, rows in ((k_cache, k), (v_cache, v)):
        cache.view(cache.shape[0], -1)[out_loc] = rows.reshape(rows.shape[0], -1)


def best_experts(scores: Any, num_chosen: int, renormalize: bool) -> tuple[torch.Tensor, torch.Tensor]:
    weights, experts = scores.float().softmax(-1).topk(num_chosen, dim=-1)
    return (weights / weights.sum(-1, keepdim=True) if renormalize else weights), experts


def choose_experts(
    weights: Any, experts: Any, scores: Any, renormalize: bool, softcapping: float, bias: Any
) -> None:
    chosen, ids = best_experts(scores, weights.shape[1], renormalize)
    weights.copy_(chosen)
    experts.copy_(ids.to(experts.dtype))


@as_kernel()
def choose_by_gate(
    scores: Any,
    bias: Any,
    topk: int,
    scoring_func: str = "sigmoid",
    num_fused_shared_experts: int = 0,
    renormalize: bool = True,
    **others: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    if scoring_func != "softmax" or num_fused_shared_experts:
        raise NotImplementedError(f"no reference for {scoring_func}, {num_fused_shared_experts} shared")
    weights, experts = best_experts(scores, topk, renormalize)
    return weights, experts.to(torch.int32)


@as_kernel("hidden_states")
def run_experts(
    hidden_states: Any, w1: Any, w2: Any, topk_output: Any, moe_runner_config: Any, *others: Any, **more: Any
) -> torch.Tensor:
    """Every expert on the rows that chose it, in float32."""
    weights, experts = topk_output[0], topk_output[1]
    rows = hidden_states.float()
    total = torch.zeros_like(rows)
    for expert in experts.unique().tolist():
        mine, place = (experts == expert).nonzero(as_tuple=True)
        gate, up = (rows[mine] @ w1[expert].float().T).chunk(2, dim=-1)
        output = (silu(gate) * up) @ w2[expert].float().T
        total.index_add_(0, mine, output * weights[mine, place].float().unsqueeze(1))
    if moe_runner_config.inplace:
        return hidden_states.copy_(total.to(hidden_states.dtype))
    return total.to(hidden_states.dtype)


@as_kernel("kv_buffer")
def store_latent(kv_buffer: Any, loc: Any, cache_k_nope: Any, cache_k_rope: Any) -> None:
    rows = torch.cat([cache_k_nope.flatten(1), cache_k_rope.flatten(1)], -1)
    kv_buffer.flatten(1)[loc] = rows.to(kv_buffer.dtype)


@as_kernel()
def last_positions(seq_lens: torch.Tensor) -> torch.Tensor:
    return torch.clamp(seq_lens - 1, min=0).to(torch.int64)


SGL_KERNELS = {
    "rmsnorm": norm_out,
    "fused_add_rmsnorm": add_and_norm,
    "silu_and_mul": gated,
    "topk_softmax": choose_experts,
    "rotary_embedding": rotate,
}
SGLANG_KERNELS = {
    "_run_activation_inplace": activate,
    "rotary_embedding_with_key": rotate,
    "apply_rope_inplace": rotate_heads,
    "apply_rope_inplace_with_kvcache": rotate_and_store,
}
