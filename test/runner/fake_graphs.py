"""Graphs without a GPU: a recorded call is kept and called again, and must touch the same memory again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
from sglang.srt.layers.logits_processor import LogitsProcessorOutput
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sglang_layered.runner.decode_graphs.graphs import LayeredDecodeGraphs
from sglang_layered.runner.decode_graphs.segments import BatchBuckets, LayerSegments
from sglang_layered.upstream.graph_attention import PlannedDecode
from sglang_layered.upstream.models import LayerCalls
from sglang_layered.upstream.probe import ranges_of

NUM_WATCHED = 3


class OutsideMemory(TorchDispatchMode):
    """The storages that operations read or write and did not allocate themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: set[int] = set()
        self._made: list[torch.Tensor] = []  # kept, so that no address is given out twice
        self._made_addresses: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.lift_fresh.default:  # a Python number became a tensor
            self._note_made(args[0])
        self.addresses |= {_address(tensor) for tensor in _tensors(args, kwargs)} - self._made_addresses
        outputs = func(*args, **(kwargs or {}))
        for tensor in _tensors(outputs):
            if _address(tensor) not in self.addresses:
                self._note_made(tensor)
        return outputs

    def _note_made(self, tensor: torch.Tensor) -> None:
        self._made.append(tensor)
        self._made_addresses.add(_address(tensor))


class FakeRecorder:
    """Records by running a call three times, as SGLang does, and replays by running it again.

    A replay that reads or writes other outside memory than the recording did is an AssertionError: a CUDA
    graph would have used the old addresses. Only a call's first replays are watched; it is slow.
    `before_replay` lets a test spoil what must not matter.
    """

    def __init__(self) -> None:
        self.calls: dict[Hashable, tuple[Callable[[], Any], set[int], Any]] = {}
        self.replayed: list[Hashable] = []
        self.before_replay: Callable[[], None] = lambda: None
        self.num_replays: Counter[Hashable] = Counter()
        self.is_open = False

    @contextmanager
    def session(self) -> Iterator[None]:
        self.is_open = True
        yield
        self.is_open = False

    def record(self, key: Hashable, run: Callable[[], Any], after_warmup: Callable[[], None]) -> None:
        assert self.is_open and key not in self.calls
        for _ in range(2):
            run()
            after_warmup()
        with OutsideMemory() as memory:
            output = run()
        self.calls[key] = (run, memory.addresses, output)

    def replay(self, key: Hashable) -> Any:
        assert not self.is_open
        self.before_replay()
        run, addresses, recorded = self.calls[key]
        if self.num_replays[key] < NUM_WATCHED:
            with OutsideMemory() as memory:
                output = run()
            assert memory.addresses == addresses, f"{key} uses other memory than when it was recorded"
        else:
            output = run()
        self.num_replays[key] += 1
        self.replayed.append(key)
        if isinstance(output, LogitsProcessorOutput):
            recorded.next_token_logits.copy_(output.next_token_logits)
        else:
            assert output is None, "only logits leave a graph as a value"
        return recorded

    def free_gib(self) -> float:
        return 1.0


class PlainAttention:
    """A backend without CUDA graph support: the padded batch is planned as if it were eager."""

    seq_len_fill = 1

    def __init__(self, backend: Any) -> None:
        self.backend = backend
        self.num_plans = 0

    def plan_capture(self, batch: ForwardBatch) -> None:
        self.backend.init_forward_metadata(batch)

    def plan(self, batch: ForwardBatch, view: Any) -> None:
        self.backend.init_forward_metadata(batch)
        self.num_plans += 1

    def planned(self, batch: ForwardBatch) -> PlannedDecode:
        return PlannedDecode(self.backend, batch)

    def record(self, batch: ForwardBatch) -> None:
        pass

    def after_warmup(self) -> None:
        pass


def fake_graphs(
    model_runner: Any, granularity: int, sizes: tuple[int, ...], *, with_logits_buffer: bool = True
) -> tuple[LayeredDecodeGraphs, FakeRecorder]:
    """Captured graphs of this model on the fake recorder.

    They attend by SGLang's attention in torch: that for CPUs keeps memory which grows with what it reads.
    """
    calls, recorder = LayerCalls(model_runner, ranges_of(model_runner)), FakeRecorder()
    logits = torch.zeros((max(sizes), model_runner.model_config.vocab_size))
    graphs = LayeredDecodeGraphs(
        calls,
        PlainAttention(TorchNativeAttnBackend(model_runner)),
        recorder,
        LayerSegments(calls.num_layers, granularity),
        BatchBuckets(sizes),
        model_runner.device,
        lambda bucket: logits[:bucket] if with_logits_buffer else None,
    )
    graphs.capture()
    return graphs, recorder


def _address(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _tensors(*trees: Any) -> list[torch.Tensor]:
    leaves = [leaf for tree in trees for leaf in tree_leaves(tree)]
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.numel() > 0]
