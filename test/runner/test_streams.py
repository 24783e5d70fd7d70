"""On CUDA the tests step the scheduler on the streams, and with the barrier, that a server has."""

from __future__ import annotations

import pytest
import torch

from harness import SteppedScheduler


@pytest.mark.gpu
def test_steps_run_on_a_stream_of_their_own(stepped: SteppedScheduler) -> None:
    scheduler = stepped.scheduler
    assert torch.cuda.current_stream() == scheduler.schedule_stream
    assert scheduler.schedule_stream not in (torch.cuda.default_stream(), scheduler.forward_stream)
    assert scheduler._war_barrier_enabled
