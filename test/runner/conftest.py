"""One stepped scheduler for all runner tests: SGLang's global state allows one a process."""

from collections.abc import Iterator

import pytest

from harness import SteppedScheduler


@pytest.fixture(scope="session")
def shared_scheduler(tiny_qwen3_moe) -> SteppedScheduler:
    return SteppedScheduler(
        tiny_qwen3_moe, max_total_tokens=3000, layered_group_tokens=64, chunked_prefill_size=512
    )


@pytest.fixture
def stepped(shared_scheduler: SteppedScheduler) -> Iterator[SteppedScheduler]:
    yield shared_scheduler
    shared_scheduler.drain()
