"""One stepped scheduler for all runner tests: SGLang's global state allows one a process."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from energy_replay import environment_of
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


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without overlap only what steps a scheduler without it: the rest would run a second time as it is.

    Nor what a mark says is the same then, and why: it steps one, but tests another thing.
    """
    if config.getoption("--without-overlap"):
        same = [item for item in items if is_same_without_overlap(item)]
        config.hook.pytest_deselected(items=same)
        items[:] = [item for item in items if item not in same]


def is_same_without_overlap(item: pytest.Item) -> bool:
    steps_one = "pytestconfig" in getattr(item, "fixturenames", ())
    return not steps_one or item.get_closest_marker("same_without_overlap") is not None


WATTS = 100.0  # of the replayed energy source


@pytest.fixture(scope="session")
def energy_replay(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Instead of this machine's energy sources: one device with a power that does not change."""
    path = tmp_path_factory.mktemp("energy") / "replay.json"
    samples = [{"at_s": 0, "watts": WATTS}]
    path.write_text(json.dumps({"devices": [{"device": "replayed", "samples": samples}]}))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment_of(path).items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="session")
def shared_scheduler(
    tiny_qwen3_moe: Path, pytestconfig: pytest.Config, energy_replay: None
) -> SteppedScheduler:
    return SteppedScheduler(
        tiny_qwen3_moe,
        enable_metrics=True,
        enable_expert_traffic_metrics=True,
        enable_energy_metrics=True,
        slo_ttft_ms=1e6,
        slo_tbt_ms=1e6,
        max_total_tokens=3000,
        layered_group_tokens=64,
        chunked_prefill_size=512,
        enable_streaming_session=True,
        disable_overlap_schedule=pytestconfig.getoption("--without-overlap"),
    )


@pytest.fixture
def stepped(shared_scheduler: SteppedScheduler) -> Iterator[SteppedScheduler]:
    yield shared_scheduler
    shared_scheduler.drain()
