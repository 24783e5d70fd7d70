"""The hierarchical cache: a group waits for the loads of its own layers, and none is read before it came."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from own_process import found_by

SCRIPT = Path(__file__).with_name("hicache_run.py")
NAMES = ["hits", "hits/loads", "one_group", "dropped", "dropped/drop", "events", "events/events"]
NAMES += ["joined", "joined/late", "overtaken", "overtaken/late"]


@pytest.fixture(scope="module")
def found(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the scenarios found in a process of their own: fused with overlap, sequential without."""
    out = tmp_path_factory.mktemp("hicache") / "found.json"
    without = pytestconfig.getoption("--without-overlap")
    execution = "sequential" if without else "fused"
    flags = {"layered_execution": execution, "disable_overlap_schedule": without}
    values: dict[str, Any] = found_by(SCRIPT, out, json.dumps(flags), *NAMES)
    return values


def test_answers_with_prefixes_from_the_host_are_those_without_cache(found: dict[str, Any]) -> None:
    hits = found["hits"]
    assert all(hits["equal"])
    assert hits["put_off"] == hits["waited"] > 0


def test_without_the_cohorts_loads_answers_are_wrong(found: dict[str, Any]) -> None:
    assert not any(found["hits/loads"]["equal"])


def test_a_group_waits_for_its_own_layers_only(found: dict[str, Any]) -> None:
    assert found["one_group"]["layers"] == found["one_group"]["group"]


def test_a_prompt_that_comes_again_after_a_drop_reads_what_has_come(found: dict[str, Any]) -> None:
    assert all(found["dropped"]["equal"])


def test_without_the_wait_at_a_drop_answers_are_wrong(found: dict[str, Any]) -> None:
    assert not all(found["dropped/drop"]["equal"])


def test_loads_that_have_ended_are_taken_in_while_a_cohort_flies(found: dict[str, Any]) -> None:
    assert found["events"]["pending"] == [1, 0]
    assert found["events/events"]["pending"] == [1, 1]


def test_a_short_prompt_waits_for_what_is_loaded_for_the_cohort_that_it_overtakes(
    found: dict[str, Any],
) -> None:
    assert found["overtaken"]["first"] and all(found["overtaken"]["equal"])
    assert found["overtaken/late"]["first"] and not all(found["overtaken/late"]["equal"])


def test_a_prompt_that_goes_on_from_slots_of_the_next_cohort_waits_for_all_their_layers(
    found: dict[str, Any], pytestconfig: pytest.Config
) -> None:
    """With overlap it is put into the cache when that cohort is on its way."""
    assert found["joined"]["put_off"] > 0 or pytestconfig.getoption("--without-overlap")
    assert all(found["joined"]["equal"])
    assert found["joined/late"]["equal"] == [pytestconfig.getoption("--without-overlap"), True]
