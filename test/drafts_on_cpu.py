"""What SGLang's drafts lack on a CPU beside attention, for processes that serve tiny models and end."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from sglang.kernels.ops.speculative.ngram_corpus import get_ngram_corpus_cls
from sglang.srt.layers.attention import hybrid_linear_attn_backend
from sglang.srt.managers import overlap_utils
from sglang.srt.mem_cache.memory_pool import MambaPool
from sglang_layered_kernels.cpu.draft_states import keep_accepted
from torch.overrides import TorchFunctionMode

MAKE_STATES = MambaPool.__init__


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


def _rows(indices: torch.Tensor, *buffers: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
    """These rows of each; SGLang gathers them in a Triton kernel, which its interpreter takes 20 ms for."""
    return tuple(None if buffer is None else buffer[indices.long()] for buffer in buffers)


def stand_in() -> None:
    """Let recurrent layers keep states behind drafts, and targets share their head with no wait for CUDA."""
    overlap_utils.gather_spec_extras = _rows
    torch.cuda.synchronize = lambda device=None: None
    MambaPool.__init__ = _make_states  # type: ignore[method-assign]
    hybrid_linear_attn_backend.scatter_mamba_states_after_mtp_verify = keep_accepted


def load_ngram_corpus() -> None:
    """Compile and load what NGRAM looks drafts up in, which SGLang does only when a server starts.

    Its compiler is set only here: PyTorch's own kernels have theirs.
    """
    before = os.environ.get("CXX")
    os.environ["CXX"] = str(Path(__file__).with_name("c++-with-cstddef"))
    try:
        get_ngram_corpus_cls()
    finally:
        if before is None:
            del os.environ["CXX"]
        else:
            os.environ["CXX"] = before
