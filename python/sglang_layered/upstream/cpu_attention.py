"""Our attention for CPUs without native kernels, as a backend of SGLang's.

Upstream: srt/layers/attention/torch_native_backend.py `TorchNativeAttnBackend`, which it extends. That one
copies every context at every step, computes the rows of cached tokens again, reads all layers' keys from the
slots of full attention, and knows no sinks, no soft caps, no latent attention and no drafts. Encoders' layers
stay with it. kernels/cpu has the arithmetic.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
from sglang.srt.layers.radix_attention import AttentionType
from sglang.srt.layers.rotary_embedding import mrope
from sglang.srt.mem_cache import allocation
from sglang.srt.mem_cache.memory_pool import KVWriteLoc
from sglang.srt.model_executor import forward_batch_info
from sglang.srt.utils import support_triton
from sglang_layered_kernels.cpu.paged_attention import Weighing, attend, attend_in_order
from sglang_layered_kernels.cpu.slots import Reader, Slots, as_run, in_runs

from sglang_layered.upstream.cpu_choice import CPU_ATTENTION
from sglang_layered.upstream.releases import requests


@dataclass(frozen=True, slots=True)
class _Request:
    """What the last rows of a request see in layers of one kind.

    Where `in_order` is None all rows see the same tokens before them, which lie at `others`, and `own` are
    the rows' slots; of a single row, `own` is None and its slot among the others. `tree` [rows, rows] says
    which rows a row sees, where these are not all before it.
    """

    num_rows: int
    in_order: Slots | None = None
    own: Slots | None = None
    others: tuple[Slots, ...] = ()
    tree: torch.Tensor | None = None

    @classmethod
    def of(cls, slots: torch.Tensor, num_rows: int, how: Weighing, tree: torch.Tensor | None) -> "_Request":
        """A request with its tokens at these slots [tokens], oldest first."""
        first = how.first_key(len(slots) - num_rows)
        hides_some = how.first_key(len(slots) - 1) > first
        slots = slots[first:]
        if hides_some or how.soft_cap:
            return cls(num_rows, in_order=as_run(slots), tree=tree)
        if num_rows == 1:
            return cls(num_rows, others=tuple(in_runs(slots)))
        past = len(slots) - num_rows
        return cls(num_rows, own=as_run(slots[past:]), others=tuple(in_runs(slots[:past])), tree=tree)


class CpuAttention(TorchNativeAttnBackend):
    """Rows of prompts, of decodes and of drafts over the KV pool's slots, each row once."""

    def __init__(self, model_runner: Any) -> None:
        super().__init__(model_runner)
        _keep_triton_out()
        self._dtype = _computes_in(model_runner.dtype)
        self._reader = Reader(self._dtype)
        self._tables: list[torch.Tensor] = []
        self._num_rows: list[int] = []
        self._trees: Sequence[torch.Tensor | None] = ()
        self._kinds: dict[tuple[int, bool, bool], list[_Request]] = {}

    def init_forward_metadata(self, forward_batch: Any) -> None:
        """Note where the tokens of each request lie; layers of one kind share what follows from it."""
        super().init_forward_metadata(forward_batch)
        mode, lengths = forward_batch.forward_mode, forward_batch.seq_lens.tolist()
        trees: Sequence[torch.Tensor | None] | None = None
        if mode.is_target_verify():  # such a batch has the lengths before its rows, and none of rows
            drafts, num_drafts = forward_batch.spec_info, forward_batch.spec_info.draft_token_num
            lengths, num_rows = [length + num_drafts for length in lengths], [num_drafts] * len(lengths)
            if drafts.tree_topk != 1:  # a chain of drafts has no need of its mask
                trees = drafts.custom_mask.view(-1, num_drafts, num_drafts).unbind()
        else:
            is_decode = mode.is_decode_or_idle()
            num_rows = [1] * len(lengths) if is_decode else forward_batch.extend_seq_lens.tolist()
        rows = zip(forward_batch.req_pool_indices.tolist(), lengths, strict=True)
        table = self.req_to_token_pool.req_to_token
        self.see([table[row, :length] for row, length in rows], num_rows, trees)

    def see(
        self,
        tables: list[torch.Tensor],
        num_rows: list[int],
        trees: Sequence[torch.Tensor | None] | None = None,
    ) -> None:
        """Take the requests of the next forward.

        Args:
            tables: Each request's slots [tokens], oldest first, those of its rows included.
            num_rows: Rows of each, its last tokens.
            trees: Of each [rows, rows] bool, as `attend` takes it; None: no request has one.
        """
        self._tables, self._num_rows, self._kinds = tables, num_rows, {}
        self._trees = [None] * len(tables) if trees is None else trees

    def forward_extend(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        layer: Any,
        forward_batch: Any,
        save_kv_cache: bool = True,
        sinks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """As upstream; `sinks` [heads]."""
        if _is_of_encoder(layer):
            return super().forward_extend(q, k, v, layer, forward_batch, save_kv_cache)
        if k is not None and v is not None and not save_kv_cache and not any(self._past()):
            # Latent attention hands over the expanded keys of a prompt, which no pool holds.
            return self._attend_given(q, k, v, layer, sinks)
        self._save(k, v, layer, forward_batch, save_kv_cache)
        return self._attend(q, layer, sinks)

    def forward_decode(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        layer: Any,
        forward_batch: Any,
        save_kv_cache: bool = True,
        sinks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """As upstream; `sinks` [heads]."""
        if _is_of_encoder(layer):
            return super().forward_decode(q, k, v, layer, forward_batch, save_kv_cache)
        self._save(k, v, layer, forward_batch, save_kv_cache)
        return self._attend(q, layer, sinks)

    def _past(self) -> list[int]:
        return [len(table) - rows for table, rows in zip(self._tables, self._num_rows, strict=True)]

    def _save(
        self, k: torch.Tensor | None, v: torch.Tensor | None, layer: Any, batch: Any, wanted: bool
    ) -> None:
        if wanted and k is not None and v is not None:
            where = KVWriteLoc(batch.out_cache_loc, self.swa_out_cache_loc)
            self.token_to_kv_pool.set_kv_buffer(layer, where, k, v)

    @torch.no_grad()  # OLMoE leaves that to the event loop, and a scheduler can be stepped without one
    def _attend(self, q: torch.Tensor, layer: Any, sinks: torch.Tensor | None) -> torch.Tensor:
        how, outputs = _weighing(layer, sinks), []
        keys = self.token_to_kv_pool.get_key_buffer(layer.layer_id)
        values = self.token_to_kv_pool.get_value_buffer(layer.layer_id)
        queries = q.reshape(-1, layer.tp_q_head_num, layer.qk_head_dim).to(self._dtype).split(self._num_rows)
        for query, request in zip(queries, self._requests(layer, how), strict=True):
            if request.in_order is not None:
                seen = self._reader.read(keys, values, request.in_order)
                outputs.append(attend_in_order(query, seen, how, request.tree))
                continue
            own = None if request.own is None else self._reader.read(keys, values, request.own)
            others = self._reader.pieces(keys, values, request.others, request.num_rows)
            outputs.append(attend(query, own, others, how, request.tree))
        return _shaped(outputs, q, layer)

    @torch.no_grad()
    def _attend_given(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layer: Any, sinks: torch.Tensor | None
    ) -> torch.Tensor:
        """Prompts without a prefix, over keys and values of their own rows."""
        shapes = (
            (layer.tp_q_head_num, layer.qk_head_dim),
            (layer.tp_k_head_num, layer.qk_head_dim),
            (layer.tp_v_head_num, layer.v_head_dim),
        )
        rows = [
            part.reshape(-1, *shape).to(self._dtype).split(self._num_rows)
            for part, shape in zip((q, k, v), shapes, strict=True)
        ]
        how = _weighing(layer, sinks)
        outputs = [
            attend_in_order(query, (keys, values), how)
            if how.soft_cap or how.first_key(len(query) - 1)
            else attend(query, (keys, values), (), how)
            for query, keys, values in zip(*rows, strict=True)
        ]
        return _shaped(outputs, q, layer)

    def _requests(self, layer: Any, how: Weighing) -> list[_Request]:
        """Where this layer's keys of each request lie; worked out once a forward for layers of a kind."""
        has_own_pool = (
            self.use_sliding_window_kv_pool and self.token_to_kv_pool.layers_mapping[layer.layer_id][1]
        )
        kind = (how.window_left, bool(how.soft_cap), has_own_pool)
        if kind not in self._kinds:
            self._kinds[kind] = [
                _Request.of(self._in_window_pool(table) if has_own_pool else table, num_rows, how, tree)
                for table, num_rows, tree in zip(self._tables, self._num_rows, self._trees, strict=True)
            ]
        return self._kinds[kind]

    def _in_window_pool(self, slots: torch.Tensor) -> torch.Tensor:
        """Slots in the pool of layers with a window; of tokens that have left it, slot 0."""
        return self.token_to_kv_pool.translate_loc_from_full_to_swa(slots)


def _is_of_encoder(layer: Any) -> bool:
    return layer.is_cross_attention or layer.attn_type == AttentionType.ENCODER_ONLY


def _weighing(layer: Any, sinks: torch.Tensor | None) -> Weighing:
    return Weighing(layer.scaling, layer.sliding_window_size, layer.logit_cap, sinks)


def _shaped(outputs: list[torch.Tensor], q: torch.Tensor, layer: Any) -> torch.Tensor:
    """As upstream: in the form of q, or [rows, heads * value size] where a value is no key's size."""
    rows = torch.cat(outputs).to(q.dtype)
    return rows.flatten(1) if layer.qk_head_dim != layer.v_head_dim else rows.view(q.shape)


def _computes_in(dtype: torch.dtype) -> torch.dtype:
    """Without AMX torch's attention is up to three times faster in float32 than in 16 bits, and exact."""
    return dtype if torch.cpu._is_amx_tile_supported() else torch.promote_types(dtype, torch.float32)


def _keep_triton_out() -> None:
    """SGLang takes Triton for every backend whose name it does not know; on a CPU there is none."""
    for module in (forward_batch_info, mrope, allocation):
        module.support_triton = _support_triton
    allocation.get_last_loc = allocation.get_last_loc_torch
    requests.allocate_pages_by_torch()


def _support_triton(backend: str) -> bool:
    return backend != CPU_ATTENTION and support_triton(backend)
