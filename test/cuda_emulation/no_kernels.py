"""Kernels that compute nothing: what is left of a step on the emulated GPU is the host's work.

Their outputs are memory that nobody wrote. A replay gives the recorded output. To be called in place of
`emulate_kernels`, before a scheduler is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import sglang.srt.model_executor.runner_backend_utils.breakable_cuda_graph.breakable_cuda_graph as breakable
import torch
from sglang.srt.layers.logits_processor import LogitsProcessorOutput

import emulated_kernels
from emulated_streams import IS_CAPTURING, ORDER
from emulated_torch import MODES
from order import Clock, Order

NUM_LAUNCHES = [0]  # replays so far
MAKERS = (
    "arange",
    "empty",
    "full",
    "ones",
    "tensor",
    "zeros",
)  # torch's functions that a step gives a device


@contextmanager
def without_emulation() -> Iterator[None]:
    """Inside, only calls that name a device pass through the emulation, and no order of streams is recorded.

    Otherwise each call of torch, an attribute of a tensor too, would cost a microsecond that no GPU asks for:
    450 of them in a layered step, 80 in a decode step.
    """
    mode, module, tensor = MODES[-1], torch, torch.Tensor
    owners: list[tuple[Any, str]] = [*((module, name) for name in MAKERS), (tensor, "to")]
    calls = [getattr(owner, name) for owner, name in owners]
    recorded, ORDER[0] = ORDER[0], _NoOrder()
    for (owner, name), call in zip(owners, calls, strict=True):
        setattr(owner, name, _emulated(mode, call, is_method=owner is tensor))
    try:
        with torch._C.DisableTorchFunction():
            yield
    finally:
        ORDER[0] = recorded
        for (owner, name), call in zip(owners, calls, strict=True):
            setattr(owner, name, call)


def _emulated(mode: Any, call: Callable[..., Any], *, is_method: bool) -> Callable[..., Any]:
    def called(*args: Any, **kwargs: Any) -> Any:
        if is_method or "device" in kwargs or "pin_memory" in kwargs:
            return mode.__torch_function__(call, (), args, kwargs)
        return call(*args, **kwargs)

    return called


class _NoOrder(Order):
    """Streams and events that cost next to nothing."""

    def launch(self, stream: str) -> Clock:
        return {}

    def record(self, stream: str) -> Clock:
        return {}

    def wait(self, stream: str, recorded: Clock) -> None:
        pass

    def synchronize(self, recorded: Clock) -> None:
        pass


def nothing(*args: Any, **kwargs: Any) -> None:
    """A kernel that writes where it was told to."""


def unwritten(rows: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """A kernel that gives rows like its first argument."""
    return torch.empty_like(rows)


def product(
    rows: torch.Tensor, weight: torch.Tensor, rows_scale: Any, scale: Any, dtype: torch.dtype, bias: Any
) -> torch.Tensor:
    """[rows, inputs] times FP8 weights [inputs, outputs]."""
    return rows.new_empty((rows.shape[0], weight.shape[1]), dtype=dtype)


def emulate_no_kernels() -> None:
    """Put them where SGLang calls kernels for Qwen3-MoE with FlashAttention 3, matrix products and graphs."""
    import sglang.kernels.ops.quantization.fp8_kernel  # noqa: F401  (defines an operator)

    emulated_kernels.SGL_KERNELS |= {"sgl_per_token_quant_fp8": nothing, "fp8_scaled_mm": product}
    emulated_kernels.SGLANG_KERNELS |= {"per_tensor_quant_fp8": nothing}
    for table in (emulated_kernels.SGL_KERNELS, emulated_kernels.SGLANG_KERNELS):
        table.update({name: kernel if kernel is product else nothing for name, kernel in table.items()})
    emulated_kernels.emulate_kernels()
    _patch_layers()
    _patch_attention()
    _patch_graphs()
    torch.nn.functional.linear = lambda rows, weight, bias=None: rows.new_empty(
        (*rows.shape[:-1], weight.shape[0])
    )
    _copy_nothing()


def _copy_nothing() -> None:
    """Copies of activations are launches; those of the tables that a step is planned by stay."""
    tensor: Any = torch.Tensor
    join, contiguous, copy = torch.cat, tensor.contiguous, tensor.copy_

    def cat(tensors: Sequence[torch.Tensor], dim: int = 0, out: Any = None) -> torch.Tensor:
        first = tensors[0]
        if not first.is_floating_point() or first.dim() < 2:
            return join(tensors, dim, out=out)
        if out is not None:
            return out
        shape = list(first.shape)
        shape[dim] = sum(one.shape[dim] for one in tensors)
        return first.new_empty(shape)

    def make_contiguous(rows: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        if rows.is_contiguous() or not rows.is_floating_point():
            return contiguous(rows, **kwargs)
        return rows.new_empty(rows.shape)

    def copy_in(rows: torch.Tensor, other: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        is_launch = rows.is_floating_point() and rows.dim() > 1
        return rows if is_launch else copy(rows, other, *args, **kwargs)

    torch.cat, tensor.contiguous, tensor.copy_ = cat, make_contiguous, copy_in


def _patch_layers() -> None:
    import flashinfer.norm as norm
    import sglang.kernels.ops.moe.moe_fused_gate as gate
    import sglang.srt.layers.moe.moe_runner.triton_utils.fused_moe as fused_moe
    import sglang.srt.models.utils as model_utils

    def choose(
        scores: torch.Tensor, bias: Any, topk: int, **others: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        shape = (scores.shape[0], topk)
        return scores.new_empty(shape, dtype=torch.float32), scores.new_empty(shape, dtype=torch.int32)

    _put(gate, moe_fused_gate=choose)
    _put(fused_moe, fused_experts=lambda hidden_states, *args, **kwargs: hidden_states)
    _put(model_utils, fused_inplace_qknorm=nothing)
    _put(norm, rmsnorm=unwritten, fused_add_rmsnorm=nothing)


def _patch_attention() -> None:
    import sgl_kernel.flash_attn as kernels
    import sglang.srt.layers.attention.flashattention_backend as backend
    from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool

    def attend(q: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return torch.empty_like(q)

    def schedule(batch_size: int, *args: Any, **kwargs: Any) -> torch.Tensor:
        return torch.zeros(1 + 4 * batch_size, dtype=torch.int32)

    _put(kernels, get_scheduler_metadata=schedule)
    _put(backend, normal_decode_set_metadata=nothing)
    _put(backend, flash_attn_with_kvcache=attend, flash_attn_varlen_func=attend)
    MHATokenToKVPool.set_kv_buffer = nothing


def _patch_graphs() -> None:
    from sglang.srt.model_executor.runner_backend.breakable_cuda_graph_backend import (
        BreakableCudaGraphBackend,
    )
    from sglang.srt.model_executor.runner_backend.full_cuda_graph_backend import FullCudaGraphBackend

    def capture(self: Any, key: Any, call: Callable[[], Any], *args: Any, **kwargs: Any) -> None:
        IS_CAPTURING[0] = True
        self._graphs[key], self._outputs[key] = key, call()
        IS_CAPTURING[0] = False

    def replay(self: Any, key: Any, batch: Any, **kwargs: Any) -> Any:
        NUM_LAUNCHES[0] += 1
        return self._outputs[key]

    FullCudaGraphBackend.capture_one, FullCudaGraphBackend.replay = capture, replay
    _put(breakable, _weak_ref_if_tensor=lambda value: value)

    def capture_broken(self: Any, key: Any, call: Callable[[], Any], *args: Any, **kwargs: Any) -> None:
        call()  # memory of its own is there, as after SGLang's warm-up runs
        self._graphs[key] = Broken()
        with self._graphs[key].captured():
            call()

    def replay_broken(self: Any, key: Any, batch: Any, **kwargs: Any) -> None:
        NUM_LAUNCHES[0] += 1
        for attend in self._graphs[key].between:
            attend()
            NUM_LAUNCHES[0] += 1

    BreakableCudaGraphBackend.capture_one, BreakableCudaGraphBackend.replay = capture_broken, replay_broken


class Broken:
    """What SGLang's breaks ask of a capture; `between` its graphs is what they run."""

    _barrier_fn = None

    def __init__(self) -> None:
        self.between: list[Callable[[], Any]] = []

    @property
    def cuda_graph(self) -> Any:
        return SimpleNamespace(_break_fns=self.between)

    @contextmanager
    def captured(self) -> Iterator[None]:
        token = breakable._current_capture_var.set(self)  # type: ignore[arg-type]
        self._begin_new_segment()
        yield
        self._end_current_segment()
        breakable._current_capture_var.reset(token)

    def _begin_new_segment(self) -> None:
        IS_CAPTURING[0] = True

    def _end_current_segment(self) -> None:
        IS_CAPTURING[0] = False


def give_fixed_logits(model: Any, vocab_size: int, most_rows: int) -> None:
    """The model's logits are the same in every step, on the memory that a launch would have."""
    logits = torch.rand(most_rows, vocab_size)

    def fixed(ids: Any, rows: Any, head: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
        return LogitsProcessorOutput(next_token_logits=logits[: batch.batch_size].clone())

    model.logits_processor.forward = fixed


def _put(module: ModuleType, **calls: Callable[..., Any]) -> None:
    for name, call in calls.items():
        setattr(module, name, call)
