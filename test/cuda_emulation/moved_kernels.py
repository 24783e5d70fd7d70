"""Where each release of SGLang reads the kernels that it keeps in another place than the other release."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import Any

import msgspec

RELEASE = version("sglang")  # SGLang itself is imported later, when Triton knows that it interprets
IS_0_5_23 = RELEASE == "0.5.23"
OPS = "sglang.kernels.ops"
DSA, TREES = f"{OPS}.attention.dsa", f"{OPS}.speculative"
# By the name of the kernel that is called: its module and, where it has another one there, its name.
PLACES: dict[str, dict[str, str]] = {
    "0.5.17": {
        "act_quant": f"{DSA}.triton_kernel",
        "fused_dsa_decode_metadata": f"{OPS}.attention.dsa_metadata",
        "fused_dsa_target_verify_metadata": f"{OPS}.attention.dsa_metadata",
        "fused_dsa_draft_extend_metadata": f"{OPS}.attention.dsa_metadata",
        "fused_metadata_copy_cuda": f"{OPS}.attention.fused_metadata_copy",
        "fused_metadata_copy_multi_cuda": f"{OPS}.attention.fused_metadata_copy",
        "topk_transform_paged_v2": f"{OPS}.attention.dsv4.topk:topk_transform_512_v2",
        "flash_mla_sparse_fwd": "sgl_kernel.flash_mla",
        "reconstruct_indices_from_tree_mask": "sglang.srt.speculative.ngram_worker",
    },
    "0.5.23": {
        "act_quant": f"{OPS}.quantization.act_quant_triton",
        "fused_dsa_decode_metadata": "sglang.srt.layers.attention.dsa.dsa_metadata_manager",
        "fused_dsa_target_verify_metadata": "sglang.srt.layers.attention.dsa.dsa_metadata_manager",
        "fused_dsa_draft_extend_metadata": "sglang.srt.layers.attention.dsa.dsa_metadata_manager",
        "fused_metadata_copy_cuda": f"{DSA}.fused_metadata_copy",
        "fused_metadata_copy_multi_cuda": f"{DSA}.fused_metadata_copy",
        "topk_transform_paged_v2": f"{OPS}.attention.dsv4.topk",
        "flash_mla_sparse_fwd": f"{OPS}.attention.flash_mla_interface",
        "reconstruct_indices_from_tree_mask": f"{TREES}.reconstruct_tree",
        "sgl_build_tree_kernel_efficient": f"{TREES}.spec_tree",
        "verify_tree_greedy": f"{TREES}.tree",
    },
}


def put(**references: Any) -> None:
    """Put references where this release calls the kernels of these names; it must have each."""
    for kernel, reference in references.items():
        place, _, name = PLACES[RELEASE][kernel].partition(":")
        module = import_module(place)
        assert hasattr(module, name or kernel), f"{place} has no {name or kernel}"
        setattr(module, name or kernel, reference)


def set_argument(server_args: Any, name: str, value: Any) -> None:
    """Another value of a flag, after SGLang has resolved and published its arguments."""
    if IS_0_5_23:
        msgspec.structs.force_setattr(server_args, name, value)
    else:
        object.__setattr__(server_args, name, value)
