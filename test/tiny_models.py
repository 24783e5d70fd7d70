"""The tiny models that tests share, made once and kept; and how a process serves them on this machine.

No CUDA kernel takes the heads of 32 that are fast on a CPU: with a CUDA driver the models have heads of 64.
"""

from __future__ import annotations

import os
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from sglang_layered.errors import ModelRecipeError
from sglang_layered.upstream.cpu_kernels import cuda_driver_available

if TYPE_CHECKING:
    from sglang_layered_lab.models.recipe import FamilyRecipe, Recipe

ON_CUDA = cuda_driver_available()
# Servers whose greedy tokens are compared. On CUDA the default attention takes nothing wider than 16 bits.
EXACT = ("--dtype", "float32", "--random-seed", "1", "--skip-server-warmup")
EXACT += ("--attention-backend", "triton") if ON_CUDA else ()
HEAD_SIZE_ON_CUDA = 64
# What one version of transformers writes another may refuse, as that of SGLang 0.5.23 and that of 0.5.17 do.
MODELS = Path(__file__).resolve().parent.parent / "out" / "test-models" / version("transformers")


def tiny_model(arch: str) -> Path:
    """The folder of a family's tiny model."""
    return sized_model(arch, HEAD_SIZE_ON_CUDA if ON_CUDA else None)


def quantized_model(arch: str, method: str, *, num_layers: int, dequantized: bool = False) -> Path:
    """A family's tiny model with quantized weights, or its twin in floats that stand for the same."""
    from sglang_layered_lab.models.catalogue import find_recipe

    recipe = find_recipe(arch, "tiny", num_layers=num_layers, quantization=method, dequantized=dequantized)
    return _made(recipe, f"{arch}-{num_layers}-{method}{'-dequantized' if dequantized else ''}")


def quantized_for_cuda(method: str | None, *, num_layers: int, dequantized: bool = False) -> Path:
    """A tiny Qwen3-MoE of sizes that CUDA's quantized kernels take; None: of plain weights."""
    from sglang_layered_lab.models.catalogue import find_recipe
    from sglang_layered_lab.models.recipe import ModelRecipe

    recipe = find_recipe(
        "qwen3_moe", "tiny", num_layers=num_layers, quantization=method, dequantized=dequantized
    )
    assert isinstance(recipe, ModelRecipe) and recipe.experts is not None
    experts = replace(recipe.experts, intermediate_size=128)  # a scale of W4A8 is for so many inputs
    recipe = replace(recipe, head_size=HEAD_SIZE_ON_CUDA, experts=experts)
    return _made(recipe, f"cuda-{num_layers}-{method}{'-dequantized' if dequantized else ''}")


def sized_model(arch: str, head_size: int | None, dtype: str | None = None) -> Path:
    """The tiny model with heads of another size, where its recipe has one."""
    from sglang_layered_lab.models.catalogue import find_recipe
    from sglang_layered_lab.models.recipe import ModelRecipe

    recipe, name = find_recipe(arch, "tiny", dtype=dtype), arch
    if isinstance(recipe, ModelRecipe) and head_size is not None:
        recipe, name = replace(recipe, head_size=head_size), f"{arch}-{recipe.dtype}-heads-{head_size}"
    return _made(recipe, name)


def drafted_model(arch: str, kind: str | None) -> tuple[Path, Path | None]:
    """A family's tiny model that drafts can guess, and a draft of a kind of `make-draft`; None: none."""
    from sglang_layered_lab.models.catalogue import find_recipe
    from sglang_layered_lab.models.drafts import make_draft

    target = _made(find_recipe(arch, "tiny", draftable=True), f"{arch}-draftable")
    if kind is None:
        return target, None
    draft = MODELS / f"{arch}-draftable-{kind}"
    make_draft(kind, target, draft)
    return (draft, None) if kind == "mtp" else (target, draft)


def sparse_model(num_chosen: int, is_interleaved: bool, choosing: int) -> Path:
    """DeepSeek-V3.2: as V3, and each row attends to as many tokens as an indexer chooses.

    `is_interleaved`: the indexer's rotary embedding turns pairs of neighbours, as in GLM-5. Layer 0 and every
    `choosing`-th from layer 1 on have an indexer, the others take its choice over, as in GLM-5.2.
    """
    recipe, name = _sparse_recipe(num_chosen, is_interleaved, choosing)
    return _made(replace(recipe, arch="deepseek_v32"), name)


def drafted_sparse_model(num_chosen: int, is_interleaved: bool, choosing: int) -> Path:
    """A sparse model that its own MTP layer can guess.

    With `choosing` above 1, as in GLM-5.2, all steps of a draft attend to what its first one chose.
    """
    from sglang_layered_lab.models.drafts import make_draft

    recipe, name = _sparse_recipe(num_chosen, is_interleaved, choosing)
    architecture, fields = "DeepseekV32ForCausalLM", dict(recipe.fields)
    if choosing > 1:
        architecture, fields = "GlmMoeDsaForCausalLM", fields | {"index_share_for_mtp_iteration": True}
    named = {"model_type": "deepseek_v32", "architecture": architecture, "fields": fields}
    target = _made(replace(recipe, draftable=True, **named), f"{name}-draftable")
    make_draft("mtp", target, target.with_name(f"{target.name}-mtp"))
    return target.with_name(f"{target.name}-mtp")


def _sparse_recipe(num_chosen: int, is_interleaved: bool, choosing: int) -> tuple[FamilyRecipe, str]:
    from sglang_layered_lab.models.catalogue import FAMILIES

    latent = FAMILIES["deepseek_v3"]
    fields = dict(latent.fields) | {"num_experts": latent.fields["n_routed_experts"]}
    fields |= {"index_topk": num_chosen, "index_n_heads": 4, "index_head_dim": 128}
    fields |= {"indexer_rope_interleave": True} if is_interleaved else {}
    fields |= {"index_topk_freq": choosing} if choosing > 1 else {}
    name = f"deepseek_v32-{num_chosen}{'-interleaved' if is_interleaved else ''}"
    return replace(latent, fields=fields), f"{name}-shared-{choosing}" if choosing > 1 else name


def _made(recipe: Recipe, name: str) -> Path:
    from sglang_layered_lab.models.make import make_from_recipe

    try:
        make_from_recipe(recipe, MODELS / name)
    except ModelRecipeError:  # one of an older recipe
        make_from_recipe(recipe, MODELS / name, force=True)
    return MODELS / name


def use_the_cpu() -> None:
    """What SGLang must find in the environment before it is imported."""
    if not ON_CUDA:
        os.environ.setdefault("SGLANG_USE_CPU_ENGINE", "1")
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models: threads only wait for each other
