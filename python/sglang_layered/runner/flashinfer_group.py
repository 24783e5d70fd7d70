"""Attention of a group's layers with FlashInfer's own wrappers: one plan a step for all its rows."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from sglang.srt.layers.radix_attention import AttentionType, RadixAttention
from sglang.srt.mem_cache.memory_pool import KVWriteLoc
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from sglang_layered_kernels.group_attention import (
    AttentionShape,
    FlashInferWrappers,
    GroupAttention,
    PagedPairAttention,
    PageTables,
    PodAttention,
    WrapperFactory,
    page_tables,
)
from torch import nn

from sglang_layered.config import LayeredConfig
from sglang_layered.errors import UnsupportedError
from sglang_layered.upstream.runner import HybridAttention

KERNELS: Mapping[str, Callable[[AttentionShape, WrapperFactory], GroupAttention]] = {
    "pair": PagedPairAttention,
    "pod": PodAttention,
}
NUM_TURNS = 2
Kernels = Mapping[int, GroupAttention]  # by window_left; -1 is full attention


class FlashInferGroupAttention(HybridAttention):
    """HybridAttention with one planned kernel in the place of two backends.

    The backends stay for rows that do not share a layer. Kernels take turns: FlashInfer's plan fills a pinned
    buffer whose copy to the device may still wait when the overlap scheduler plans the next step.
    """

    def __init__(self, model_runner: Any, prompt_backend: Any, turns: tuple[Kernels, ...]) -> None:
        super().__init__(prompt_backend, model_runner.attn_backend)
        self._req_to_token = model_runner.req_to_token_pool.req_to_token
        self._pool = model_runner.token_to_kv_pool
        self._page_size = model_runner.page_size
        self._turns = turns
        self._turn = 0
        self._prompt_tables: dict[int, PageTables] = {}
        self._write_loc: KVWriteLoc | None = None

    def bind(self, prompt: ForwardBatch, decode: ForwardBatch) -> HybridAttention:
        """Plan for these two batches; a prompt's tables are built once and serve all its groups."""
        if prompt is not self._prompt:
            self._prompt_tables = {
                window: self._tables(prompt, prompt.extend_seq_lens_cpu, window) for window in self._kernels
            }
        super().bind(prompt, decode)
        self._turn = (self._turn + 1) % len(self._turns)
        for window, kernel in self._kernels.items():
            rows = self._tables(decode, [1] * decode.batch_size, window)
            kernel.plan(self._prompt_tables[window], rows)
        self._write_loc = KVWriteLoc(torch.cat([prompt.out_cache_loc, decode.out_cache_loc]))
        return self

    def forward(
        self,
        q: Any = None,
        k: torch.Tensor | None = None,
        v: torch.Tensor | None = None,
        layer: Any = None,
        forward_batch: ForwardBatch | None = None,
        save_kv_cache: bool = True,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Attention output [prompt rows + decode rows, heads * head_dim]."""
        given = sorted(name for name, value in kwargs.items() if value is not None)
        if given:
            raise NotImplementedError(f"FlashInfer group attention knows no arguments {given}")
        if k is not None and save_kv_cache:
            self._pool.set_kv_buffer(layer, self._write_loc, k, v)
        rows = q.contiguous().view(-1, layer.tp_q_head_num, layer.head_dim)
        kernel = self._kernels[layer.sliding_window_size]
        return kernel.run(rows, self._pool.get_kv_buffer(layer.layer_id)).view(rows.shape[0], -1)

    @property
    def _kernels(self) -> Kernels:
        return self._turns[self._turn]

    def _tables(self, batch: ForwardBatch, query_lens: list[int], window_left: int) -> PageTables:
        return page_tables(
            self._req_to_token,
            batch.req_pool_indices,
            query_lens,
            batch.seq_lens_cpu,
            page_size=self._page_size,
            window_left=window_left,
        )


def make_group_attention(
    model_runner: Any, prompt_backend: Any, wrappers: WrapperFactory | None = None
) -> HybridAttention:
    """The group attention that `--layered-group-attention` names; `wrappers` stands in for FlashInfer's.

    Raises:
        UnsupportedError: a layer of the model does what the kernels asked for do not.
    """
    kind = LayeredConfig.from_server_args(model_runner.server_args).group_attention
    decode_backend = model_runner.attn_backend
    if kind == "backends":
        return HybridAttention(prompt_backend, decode_backend)
    try:
        shapes = attention_shapes(model_runner.model, model_runner.page_size, model_runner.dtype)
        if wrappers is None:
            wrappers = FlashInferWrappers(
                prompt_backend.workspace_buffer, use_tensor_cores=decode_backend.decode_use_tensor_cores
            )
        turns = tuple(
            {shape.window_left: KERNELS[kind](shape, wrappers) for shape in shapes} for _ in range(NUM_TURNS)
        )
    except UnsupportedError as error:
        raise UnsupportedError(
            f"--layered-group-attention {kind} cannot serve {type(model_runner.model).__name__}: {error};"
            " use --layered-group-attention backends"
        ) from error
    return FlashInferGroupAttention(model_runner, prompt_backend, turns)


def attention_shapes(model: nn.Module, page_size: int, dtype: torch.dtype) -> set[AttentionShape]:
    """The shapes that the model's attention layers need: one for each sliding window.

    Raises:
        UnsupportedError: layers with the same window differ, or one needs more than plain causal attention.
    """
    layers = [module for module in model.modules() if isinstance(module, RadixAttention)]
    shapes = {_shape(layer, page_size, dtype) for layer in layers}
    if not layers or len(shapes) != len({shape.window_left for shape in shapes}):
        raise UnsupportedError(f"its {len(layers)} attention layers are not alike")
    return shapes


def _shape(layer: Any, page_size: int, dtype: torch.dtype) -> AttentionShape:
    plain = (
        not layer.is_cross_attention
        and layer.attn_type == AttentionType.DECODER
        and layer.qk_head_dim == layer.v_head_dim
        and layer.pos_encoding_mode == "NONE"
        and layer.logit_capping_method == "tanh"
        and layer.xai_temperature_len <= 0
    )
    if not plain:
        raise UnsupportedError(f"layer {layer.layer_id} needs more than causal attention on equal head sizes")
    return AttentionShape(
        num_q_heads=layer.tp_q_head_num,
        num_kv_heads=layer.tp_k_head_num,
        head_dim=layer.head_dim,
        page_size=page_size,
        scale=layer.scaling,
        dtype=dtype,
        window_left=layer.sliding_window_size,
        soft_cap=layer.logit_cap,
    )
