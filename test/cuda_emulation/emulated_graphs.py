"""CUDA graphs as calls that run again, on the memory of their capture.

SGLang's FullCudaGraphBackend captures and replays through here, its own decode graphs and the layered ones.
A replay that touches other outside memory than its capture would have used stale addresses on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import sglang.srt.model_executor.runner_backend_utils.breakable_cuda_graph.breakable_cuda_graph as breakable
import torch
from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
from sglang.srt.layers.logits_processor import LogitsProcessorOutput
from sglang.srt.model_executor import forward_context
from sglang.srt.model_executor.runner_backend.breakable_cuda_graph_backend import BreakableCudaGraphBackend
from sglang.srt.model_executor.runner_backend.full_cuda_graph_backend import FullCudaGraphBackend

from emulated_streams import IS_CAPTURING
from memory_watch import WATCH, tensors_in

NUM_WARM_UPS = 2


@dataclass(slots=True)
class Graphs:
    """What was captured and replayed, and each replay with other addresses than its capture, in words."""

    num_captures: int = 0
    num_replays: int = 0
    num_broken_replays: int = 0  # of graphs that break at attention
    mismatches: list[str] = field(default_factory=list)


GRAPHS = Graphs()


PLANS: dict[int, tuple[Any, Any]] = {}  # attention backends that the running capture used, with their plans


def emulate_graphs() -> None:
    """Put them in SGLang's backend of full graphs."""
    attend = AttentionBackend.forward

    def note_and_attend(self: Any, *args: Any, **kwargs: Any) -> Any:
        PLANS[id(self)] = self, getattr(self, "forward_metadata", None)
        return attend(self, *args, **kwargs)

    AttentionBackend.forward = note_and_attend
    FullCudaGraphBackend.capture_one = _capture_one
    FullCudaGraphBackend.replay = _replay
    BreakableCudaGraphBackend.capture_one = _capture_broken
    BreakableCudaGraphBackend.replay = _replay_broken
    breakable._weak_ref_if_tensor = lambda value: value


def _warm_up(forward_fn: Callable[[], Any], post_warmup_hook: Callable[[], None] | None) -> None:
    for _ in range(NUM_WARM_UPS):
        forward_fn()
        if post_warmup_hook is not None:
            post_warmup_hook()


def _capture_one(
    self: Any,
    shape_key: Any,
    forward_fn: Callable[[], Any],
    capture_inputs: Any = None,
    post_warmup_hook: Callable[[], None] | None = None,
) -> None:
    _warm_up(forward_fn, post_warmup_hook)
    PLANS.clear()
    with _captured(), WATCH.touching() as memory:
        output = forward_fn()
    context = forward_context._current
    self._graphs[shape_key] = (forward_fn, memory.addresses, tuple(PLANS.values()), context)
    self._outputs[shape_key] = output
    GRAPHS.num_captures += 1


def _replay(self: Any, shape_key: Any, static_forward_batch: Any, **kwargs: Any) -> Any:
    call, captured, plans, context = self._graphs[shape_key]
    # SGLang replays graphs of drafts outside of any forward.
    inside = nullcontext() if context is None else forward_context.forward_context(context)
    with _captured(), _planned(plans), inside, WATCH.touching() as memory:
        output = call()
    GRAPHS.num_replays += 1
    if memory.addresses != captured:
        new, gone = len(memory.addresses - captured), len(captured - memory.addresses)
        GRAPHS.mismatches.append(f"graph {shape_key}: {new} new addresses, {gone} gone")
    recorded = self._outputs[shape_key]
    for rows, home in zip(_outputs(output), _outputs(recorded), strict=True):
        if rows.data_ptr() != home.data_ptr():
            home.copy_(rows)
    return recorded


def _outputs(output: Any) -> list[torch.Tensor]:
    """What a caller reads of a graph's output: logits, hidden states of drafts, drafts."""
    if isinstance(output, LogitsProcessorOutput):
        output = (output.next_token_logits, output.hidden_states)
    return tensors_in(output)


class Broken:
    """A capture, or a replay as a call that runs again, which ends at every break and goes on behind it.

    SGLang's decorator runs what is between as in a step, and keeps the arguments of the capture for its
    replays. A replay's must be the same: where tensors lie in the graphs' pool only their shapes can be told.
    """

    _barrier_fn = None

    def __init__(self) -> None:
        self.addresses: list[set[int]] = []
        self.arguments: list[list[Any]] = []
        self.cuda_graph = self
        self._break_fns = self
        self._open: list[Any] = []

    def append(self, replay: Callable[[], Any]) -> None:
        """What SGLang would call between two graphs; its closure has the arguments."""
        names = replay.__code__.co_freevars
        kept = dict(zip(names, (cell.cell_contents for cell in replay.__closure__ or ()), strict=True))
        self.arguments.append([_fixed(value) for value in kept["captured_args"]])

    @contextmanager
    def running(self) -> Iterator[None]:
        token = breakable._current_capture_var.set(self)  # type: ignore[arg-type]
        self._begin_new_segment()
        try:
            yield
        finally:
            self._end_current_segment()
            breakable._current_capture_var.reset(token)

    def _begin_new_segment(self) -> None:
        captured, memory = _captured(), WATCH.touching()
        captured.__enter__()
        self._open = [captured, memory, memory.__enter__()]

    def _end_current_segment(self) -> None:
        captured, memory, touched = self._open
        memory.__exit__(None, None, None)
        captured.__exit__(None, None, None)
        self.addresses.append(touched.addresses)


def _fixed(value: Any) -> Any:
    """What of an argument a replay cannot change."""
    if isinstance(value, torch.Tensor):
        return value.shape, value.stride(), value.dtype
    if isinstance(value, dict):
        return {name: _fixed(item) for name, item in value.items()}
    return id(value) if isinstance(value, object) and not isinstance(value, (int, float, str)) else value


def _capture_broken(
    self: Any,
    shape_key: Any,
    forward_fn: Callable[[], Any],
    capture_inputs: Any = None,
    post_warmup_hook: Callable[[], None] | None = None,
) -> None:
    _warm_up(forward_fn, post_warmup_hook)
    capture = Broken()
    with capture.running():
        assert forward_fn() is None, "what leaves a graph that breaks lies in static tensors"
    self._graphs[shape_key] = forward_fn, capture
    GRAPHS.num_captures += len(capture.addresses)


def _replay_broken(self: Any, shape_key: Any, static_forward_batch: Any, **kwargs: Any) -> Any:
    call, captured = self._graphs[shape_key]
    again = Broken()
    with again.running():
        call()
    GRAPHS.num_replays += len(again.addresses)
    GRAPHS.num_broken_replays += 1
    if again.addresses != captured.addresses or again.arguments != captured.arguments:
        GRAPHS.mismatches.append(f"graph {shape_key}: other memory, or other arguments at a break")


@contextmanager
def _captured() -> Iterator[None]:
    """Code that asks whether it is captured goes the captured way, in a replay, too."""
    IS_CAPTURING[0] = True
    try:
        yield
    finally:
        IS_CAPTURING[0] = False


@contextmanager
def _planned(plans: Iterable[tuple[Any, Any]]) -> Iterator[None]:
    """A replay knows the plan objects of its capture, whatever the backends hold by now."""
    now = [(backend, backend.forward_metadata) for backend, _ in plans]
    for backend, plan in plans:
        backend.forward_metadata = plan
    try:
        yield
    finally:
        for backend, plan in now:
            backend.forward_metadata = plan
