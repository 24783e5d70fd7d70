"""CUDA graphs as calls that run again, on the memory of their capture.

SGLang's FullCudaGraphBackend captures and replays through here, its own decode graphs and the layered ones.
A replay that touches other outside memory than its capture would have used stale addresses on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
from sglang.srt.layers.logits_processor import LogitsProcessorOutput
from sglang.srt.model_executor.runner_backend.full_cuda_graph_backend import FullCudaGraphBackend

from emulated_streams import IS_CAPTURING
from memory_watch import WATCH

NUM_WARM_UPS = 2


@dataclass(slots=True)
class Graphs:
    """What was captured and replayed, and each replay with other addresses than its capture, in words."""

    num_captures: int = 0
    num_replays: int = 0
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


def _capture_one(
    self: Any,
    shape_key: Any,
    forward_fn: Callable[[], Any],
    capture_inputs: Any = None,
    post_warmup_hook: Callable[[], None] | None = None,
) -> None:
    for _ in range(NUM_WARM_UPS):
        forward_fn()
        if post_warmup_hook is not None:
            post_warmup_hook()
    PLANS.clear()
    with _captured(), WATCH.touching() as memory:
        output = forward_fn()
    self._graphs[shape_key] = (forward_fn, memory.addresses, tuple(PLANS.values()))
    self._outputs[shape_key] = output
    GRAPHS.num_captures += 1


def _replay(self: Any, shape_key: Any, static_forward_batch: Any, **kwargs: Any) -> Any:
    call, captured, plans = self._graphs[shape_key]
    with _captured(), _planned(plans), WATCH.touching() as memory:
        output = call()
    GRAPHS.num_replays += 1
    if memory.addresses != captured:
        new, gone = len(memory.addresses - captured), len(captured - memory.addresses)
        GRAPHS.mismatches.append(f"graph {shape_key}: {new} new addresses, {gone} gone")
    recorded = self._outputs[shape_key]
    if isinstance(output, LogitsProcessorOutput):
        rows, home = output.next_token_logits, recorded.next_token_logits
        if rows.data_ptr() != home.data_ptr():
            home.copy_(rows)
    return recorded


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
