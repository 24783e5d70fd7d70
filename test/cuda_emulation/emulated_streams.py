"""torch.cuda's streams and events, which order nothing here and write down what they would order."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from order import Order

ORDER = [Order()]  # the one that is recorded into
CPU = torch.device("cpu")


class Stream:
    """One stream; `name` is what the recorded order calls it."""

    num_made = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        Stream.num_made += 1
        self.cuda_stream = self.stream_id = Stream.num_made
        self.name = f"stream {Stream.num_made}"
        self.device, self.device_index, self.priority = CPU, 0, 0

    def wait_stream(self, stream: Stream) -> None:
        ORDER[0].wait(self.name, ORDER[0].record(stream.name))

    def wait_event(self, event: Event) -> None:
        if event.clock is not None:
            ORDER[0].wait(self.name, event.clock)

    def record_event(self, event: Event | None = None) -> Event:
        event = Event() if event is None else event
        event.record(self)
        return event

    def synchronize(self) -> None:
        ORDER[0].synchronize(ORDER[0].record(self.name))

    def query(self) -> bool:
        return True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stream) and other.cuda_stream == self.cuda_stream

    def __hash__(self) -> int:
        return self.cuda_stream


class Event:
    """One event; an event that was not recorded orders nothing, as in CUDA."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.clock: dict[str, int] | None = None
        self._recorded_s = 0.0

    def record(self, stream: Stream | None = None) -> None:
        self.clock = ORDER[0].record((stream or CURRENT[-1]).name)
        self._recorded_s = time.perf_counter()

    def wait(self, stream: Stream | None = None) -> None:
        (stream or CURRENT[-1]).wait_event(self)

    def synchronize(self) -> None:
        if self.clock is not None:
            ORDER[0].synchronize(self.clock)

    def query(self) -> bool:
        return True

    def elapsed_time(self, other: Event) -> float:
        return (other._recorded_s - self._recorded_s) * 1e3


class StreamContext:
    """Work inside goes to this stream."""

    def __init__(self, stream: Stream | None) -> None:
        self._stream = stream

    def __enter__(self) -> None:
        CURRENT.append(self._stream or CURRENT[-1])

    def __exit__(self, *error: object) -> None:
        CURRENT.pop()


DEFAULT = Stream()
DEFAULT.name = "default"
CURRENT = [DEFAULT]
IS_CAPTURING = [False]


@contextmanager
def recorded() -> Iterator[Order]:
    """Record stream and event calls into an order of their own; streams keep what they are."""
    before, ORDER[0] = ORDER[0], Order()
    try:
        yield ORDER[0]
    finally:
        ORDER[0] = before


def emulate_streams() -> None:
    """Put these in torch.cuda."""
    cuda: Any = torch.cuda
    cuda.Stream, cuda.Event = Stream, Event
    cuda.stream = cuda.StreamContext = StreamContext
    cuda.current_stream = lambda device=None: CURRENT[-1]
    cuda.default_stream = lambda device=None: DEFAULT
    cuda.set_stream = _set_stream
    cuda.synchronize = lambda device=None: ORDER[0].synchronize_all()
    cuda.is_current_stream_capturing = lambda: IS_CAPTURING[0]


def _set_stream(stream: Stream) -> None:
    CURRENT[-1] = stream
