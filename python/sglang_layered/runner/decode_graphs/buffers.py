"""The tensors that recorded calls read and write: inputs of the decode rows, and their activations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from sglang.srt.layers.dp_attention import DpPaddingMode
from sglang.srt.model_executor.cuda_graph_buffer_registry import build_decode_registry
from sglang.srt.model_executor.forward_batch_info import (
    CaptureHiddenMode,
    ForwardBatch,
    ForwardMode,
    PPProxyTensors,
    enable_num_token_non_padded,
)
from sglang.srt.model_executor.runner.decode_cuda_graph_runner import build_replay_fb_view
from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

INPUTS = ("input_ids", "positions", "req_pool_indices", "seq_lens", "seq_lens_cpu", "out_cache_loc")


class DecodeInputs:
    """Inputs of up to `max_rows` decode rows, kept by SGLang's own registry.

    A padding row writes KV slot 0 and reads request 0 at `seq_len_fill` tokens; SGLang gives neither to a
    request. The storage is our own: in the hybrid layers SGLang may refill the shared one for prompt rows.
    """

    def __init__(self, device: Any, max_rows: int, seq_len_fill: int) -> None:
        self._seq_len_fill = seq_len_fill
        self._registry = build_decode_registry(
            device=torch.device(device),
            max_bs=max_rows,
            max_num_token=max_rows,
            seq_len_fill_value=seq_len_fill,
            cache_loc_dtype=torch.int64,
            enable_num_token_non_padded=enable_num_token_non_padded(),
            register_global_num_tokens=False,
            share_pool=False,
        )
        whole = {name: self._slot(name, max_rows) for name in INPUTS}
        self._buffers = SimpleNamespace(**whole, encoder_lens=None, mamba_track_indices=None)

    def batch(self, bucket: int, logits: torch.Tensor | None) -> ForwardBatch:
        """The static decode batch of `bucket` rows; `logits` [bucket, vocab] is where its logits go."""
        inputs = {name: self._slot(name, bucket) for name in INPUTS}
        non_padded = self._slot("num_token_non_padded", bucket)
        if non_padded is not None:
            non_padded.fill_(bucket)
        return ForwardBatch(
            forward_mode=ForwardMode.DECODE,
            global_forward_mode=ForwardMode.DECODE,
            batch_size=bucket,
            **inputs,
            orig_seq_lens=inputs["seq_lens"],
            seq_lens_sum=bucket * self._seq_len_fill,
            mrope_positions=self._slot("mrope_positions", bucket),
            num_token_non_padded=non_padded,
            next_token_logits_buffer=logits,
            capture_hidden_mode=CaptureHiddenMode.NULL,
            dp_padding_mode=DpPaddingMode.get_default_mode_in_cuda_graph(),
            spec_algorithm=SpeculativeAlgorithm.NONE,
        )

    def fill(self, decode: ForwardBatch, bucket: int) -> Any:
        """Copy the rows in and reset the padding; gives what attention backends take at a replay."""
        num_rows = decode.batch_size
        self._registry.fill_from(
            decode, raw_bs=num_rows, padded_bs=bucket, raw_num_tokens=num_rows, padded_num_tokens=bucket
        )
        return build_replay_fb_view(
            forward_batch=decode,
            buffers=self._buffers,
            bs=bucket,
            raw_bs=num_rows,
            num_tokens=bucket,
            seq_len_fill_value=self._seq_len_fill,
            capture_forward_mode=ForwardMode.DECODE,
            is_encoder_decoder=False,
        )

    def _slot(self, name: str, num_rows: int) -> torch.Tensor | None:
        if not self._registry.has_slot(name):
            return None
        return self._registry.get_slot(name).slice_for(num_rows, num_rows)


class StaticRows:
    """Activations [max_rows, ...], one tensor for each key of the model's PPProxyTensors.

    At some cuts a key is None (no residual before layer 0): `keys` says at each cut which ones are there.
    """

    def __init__(self, samples: Iterable[PPProxyTensors]) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        self.keys: list[dict[str, bool]] = []
        for sample in samples:
            self.keys.append({key: tensor is not None for key, tensor in sample.tensors.items()})
            for key, tensor in sample.tensors.items():
                if tensor is not None and key not in self.tensors:
                    self.tensors[key] = torch.zeros_like(tensor, memory_format=torch.contiguous_format)

    def at(self, cut: int, num_rows: int) -> PPProxyTensors:
        """Views of the first rows, as the model gives them at this cut."""
        here = self.keys[cut]
        return PPProxyTensors(
            {key: self.tensors[key][:num_rows] if there else None for key, there in here.items()}
        )

    def put(self, cut: int, rows: Mapping[str, torch.Tensor | None]) -> None:
        """Write the first rows. A layer may have changed them in place, or handed one on as another."""
        there = {key: tensor for key, tensor in rows.items() if tensor is not None}
        if there.keys() != {key for key, is_there in self.keys[cut].items() if is_there}:
            raise AssertionError(f"rows at cut {cut} are {set(there)}, recorded were {self.keys[cut]}")
        ours = {tensor.untyped_storage().data_ptr(): key for key, tensor in self.tensors.items()}
        homes = {key: ours.get(tensor.untyped_storage().data_ptr()) for key, tensor in there.items()}
        strays = [key for key, home in homes.items() if home not in (None, key)]
        there |= {key: there[key].clone() for key in strays}
        for key, tensor in there.items():
            if homes[key] != key:
                self.tensors[key][: tensor.shape[0]].copy_(tensor)

    def clear(self) -> None:
        """Forget what warm-up runs left."""
        for tensor in self.tensors.values():
            tensor.zero_()
