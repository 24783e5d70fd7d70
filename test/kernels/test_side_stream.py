"""The side stream's bookkeeping, on streams that only note what waits for what."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from sglang_layered_kernels.expert_traffic import side_stream


class NotedStream:
    """Notes "A waits B" instead of waiting."""

    device = torch.device("cpu")

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self._log = name, log

    def wait_stream(self, other: NotedStream) -> None:
        self._log.append(f"{self.name} waits {other.name}")


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    log: list[str] = []
    main = NotedStream("main", log)

    @contextmanager
    def on(stream: NotedStream) -> Iterator[None]:
        log.append(f"on {stream.name}")
        yield
        log.append("back")

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: NotedStream("side", log))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: main)
    monkeypatch.setattr(torch.cuda, "stream", on)
    return log


def test_each_launch_is_joined_before_the_next(log: list[str]) -> None:
    side = side_stream.SideStream(torch.device("cpu"))
    for layer in range(2):
        side.launch(lambda layer=layer: log.append(f"work {layer}"), torch.zeros(1))
    side.join()
    side.join()
    launch = ["side waits main", "on side", "work {}", "back", "main waits side"]
    assert log == [line.format(layer) for layer in range(2) for line in launch]


def test_inputs_live_until_the_join(log: list[str]) -> None:
    side = side_stream.SideStream(torch.device("cpu"))
    ids = torch.zeros(1)
    alive = weakref.ref(ids)
    side.launch(lambda: None, ids)
    del ids
    assert alive() is not None
    side.join()
    assert alive() is None
