"""States of recurrent layers: whatever happens to a cohort, its requests answer as in stock scheduling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from own_process import found_by


@pytest.fixture(scope="module", params=["qwen3_next", "qwen3_5_moe"])
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("recurrent") / "results.json"
    return found_by(Path(__file__).with_name("recurrent_run.py"), out, request.param)


@pytest.fixture(params=["no_buffer", "extra_buffer"])
def seen(request: pytest.FixtureRequest, results: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = results[request.param]
    return found


def test_tokens_are_stocks_after_drops_cuts_and_retractions(seen: dict[str, Any]) -> None:
    assert seen["equal"] == dict.fromkeys(seen["equal"], True)
    assert len(seen["equal"]) >= 8


def test_a_dropped_prompt_starts_from_its_prefix_again(seen: dict[str, Any]) -> None:
    hits = [cached for what, cached in seen["cached_tokens"].items() if what.startswith("with a prefix")]
    assert len(hits) >= 3
    assert all(cached >= 128 for cached in hits)


def test_what_stays_of_a_cut_cohort_is_found_again(seen: dict[str, Any]) -> None:
    assert seen["cached_tokens"]["what follows it"] >= 64
