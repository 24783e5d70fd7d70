"""Attention of a layer group's rows `[prompt; decode]` over SGLang's paged KV pool, by FlashInfer."""

from sglang_layered_kernels.group_attention.flashinfer_pair import PagedPairAttention
from sglang_layered_kernels.group_attention.flashinfer_pod import PodAttention
from sglang_layered_kernels.group_attention.kernel import GroupAttention
from sglang_layered_kernels.group_attention.plan import AttentionShape, PageTables, page_tables
from sglang_layered_kernels.group_attention.wrappers import FlashInferWrappers, WrapperFactory

__all__ = [
    "AttentionShape",
    "FlashInferWrappers",
    "GroupAttention",
    "PageTables",
    "PagedPairAttention",
    "PodAttention",
    "WrapperFactory",
    "page_tables",
]
