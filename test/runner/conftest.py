"""One stepped scheduler for all runner tests: SGLang's global state allows one a process."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from harness import SteppedScheduler

settings.register_profile(
    "long",
    max_examples=1400,
    stateful_step_count=100,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="session")
def shared_scheduler(tiny_qwen3_moe: Path, pytestconfig: pytest.Config) -> SteppedScheduler:
    return SteppedScheduler(
        tiny_qwen3_moe,
        max_total_tokens=3000,
        layered_group_tokens=64,
        chunked_prefill_size=512,
        disable_overlap_schedule=pytestconfig.getoption("--without-overlap"),
    )


@pytest.fixture
def stepped(shared_scheduler: SteppedScheduler) -> Iterator[SteppedScheduler]:
    yield shared_scheduler
    shared_scheduler.drain()
