"""CPU references of what models do with drafts, which SGLang has for AMX or CUDA only, put where it looks.

A draft model's attention is here, what recurrent layers of a target do is in `draft_states.py`.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from sglang.kernels.ops.speculative.ngram_corpus import get_ngram_corpus_cls
from sglang.srt.layers.attention import hybrid_linear_attn_backend
from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS
from sglang.srt.mem_cache.memory_pool import KVWriteLoc, MambaPool
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from sglang.srt.speculative.draft_utils import DraftBackendFactory
from sglang_layered_kernels.cpu.draft_states import keep_accepted
from sglang_layered_kernels.cpu.reference_attention import ReferenceAttention
from torch.overrides import TorchFunctionMode

from sglang_layered.errors import CpuKernelError

MAKE_STATES = MambaPool.__init__


class DraftStepAttention(ReferenceAttention):
    """One step of a draft model that grows `topk` branches of `num_steps` tokens behind each request.

    SGLang gives a branch a run of slots behind the request's own ones; `seq_lens` does not count them. Rows
    are the branches, request after request.
    """

    def __init__(self, model_runner: Any, topk: int, num_steps: int, step: int) -> None:
        super().__init__(model_runner)
        self._topk, self._num_steps, self._step = topk, num_steps, step

    def forward_decode(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        layer: Any,
        forward_batch: ForwardBatch,
        save_kv_cache: bool = True,
        sinks: torch.Tensor | None = None,
    ) -> Any:
        """As upstream; `sinks` [heads]."""
        if save_kv_cache:
            where = forward_batch.out_cache_loc
            self.token_to_kv_pool.set_kv_buffer(
                layer, KVWriteLoc(where, self._slots(where, layer.layer_id)), k, v
            )
        tables, slots = self.req_to_token_pool.req_to_token[forward_batch.req_pool_indices], []
        for table, num_before in zip(tables, forward_batch.seq_lens.tolist(), strict=True):
            for branch in range(self._topk):
                first = num_before + branch * self._num_steps
                own = torch.cat([table[:num_before], table[first : first + self._step + 1]])
                slots.append(self._slots(own, layer.layer_id))
        return self._attend(q, layer, slots, [1] * len(slots), sinks)


class DraftSteps:
    """Attention of each step of a draft model; the first token of a branch comes without one."""

    def __init__(self, model_runner: Any, topk: int, num_steps: int) -> None:
        if topk > 1 and model_runner.page_size > 1:
            raise CpuKernelError("branches of drafts in pages have no CPU reference; use --page-size 1")
        self.attn_backends = [
            DraftStepAttention(model_runner, topk, num_steps, step) for step in range(num_steps - 1)
        ]

    def init_forward_metadata(self, forward_batch: ForwardBatch) -> None:
        """Nothing is planned ahead."""


def _steps(factory: DraftBackendFactory) -> DraftSteps:
    return DraftSteps(factory.draft_model_runner, factory.topk, factory.speculative_num_steps)


def _extends(factory: DraftBackendFactory) -> ReferenceAttention:
    return ReferenceAttention(factory.draft_model_runner)


class OnCpu(TorchFunctionMode):
    """Inside, tensors that are asked for on CUDA come on the CPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """As torch asks for."""
        kwargs = dict(kwargs or {})
        if kwargs.get("device") == "cuda":
            kwargs["device"] = "cpu"
        return func(*args, **kwargs)


def _make_states(pool: MambaPool, **sizes: Any) -> None:
    """SGLang asks for the memory of states behind drafts on CUDA, whatever the device is."""
    with OnCpu():
        MAKE_STATES(pool, **sizes)


def use_drafts() -> None:
    """Put the references in place of `--attention-backend triton`, of targets and of drafts.

    SGLang itself falls back to `torch_native` on a CPU without AMX, which can neither draft nor verify.
    """
    ATTENTION_BACKENDS["triton"] = ATTENTION_BACKENDS["torch_native"] = ReferenceAttention
    DraftBackendFactory._create_triton_decode_backend = _steps
    DraftBackendFactory._create_triton_prefill_backend = _extends
    MambaPool.__init__ = _make_states  # type: ignore[method-assign]
    hybrid_linear_attn_backend.scatter_mamba_states_after_mtp_verify = keep_accepted
    torch.cuda.synchronize = lambda device=None: None  # asked for by targets that share their head


def load_ngram_corpus() -> None:
    """Compile and load what NGRAM looks drafts up in, which SGLang does only when a server starts.

    GCC 12 needs a header that one of its files does not include. Only here: PyTorch's own compilers take no
    options in CXX.
    """
    before = os.environ.get("CXX")
    os.environ["CXX"] = f"{before or 'c++'} -include cstddef"
    try:
        get_ngram_corpus_cls()
    finally:
        if before is None:
            del os.environ["CXX"]
        else:
            os.environ["CXX"] = before
