"""A second CUDA stream for work that nobody waits for within a layer; also inside a graph's capture."""

from __future__ import annotations

from collections.abc import Callable

import torch


class SideStream:
    """Launches work beside the current stream. Each launch ends before the next one's call returns control.

    The launch's inputs are held until the current stream waits for the work, so their memory is not given to
    another tensor while they are read.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self._held: torch.Tensor | None = None

    def launch(self, work: Callable[[], None], reads: torch.Tensor) -> None:
        """Run `work` after what the current stream has now; `reads` is what it reads."""
        self.join()
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        self._held = reads
        with torch.cuda.stream(self._stream):
            work()

    def join(self) -> None:
        """Make the current stream wait for the work; a graph's capture must not end before."""
        if self._held is not None:
            torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)
            self._held = None
