"""States of recurrent layers: whatever happens to a cohort, its requests answer as in stock scheduling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from own_process import found_by

# By family: how states get into the prefix cache, or that there is none.
WAYS = {
    "qwen3_next": ("no_buffer", "extra_buffer"),  # gated delta nets
    "qwen3_5_moe": ("no_buffer", "extra_buffer"),
    "kimi_linear": ("no_buffer", "extra_buffer"),  # Kimi Delta Attention beside latent attention
    "kimi_k3": ("no_buffer", "extra_buffer"),  # the same with another gate, and residuals of several layers
    "nemotron_h": ("no_buffer", "extra_buffer"),  # Mamba2
    "lfm2_moe": ("no_buffer", "no_cache"),  # short convolutions
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """All families in one process."""
    out = tmp_path_factory.mktemp("recurrent") / "results.json"
    return found_by(Path(__file__).with_name("recurrent_run.py"), out, *WAYS)


@pytest.fixture(params=WAYS)
def family(request: pytest.FixtureRequest, results: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = results[request.param]
    assert tuple(found) == WAYS[request.param]
    return found


@pytest.fixture(params=[0, 1], ids=["without overlap", "with overlap"])
def seen(request: pytest.FixtureRequest, family: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = list(family.values())[request.param]
    return found


def test_tokens_are_stocks_after_drops_cuts_and_retractions(seen: dict[str, Any]) -> None:
    assert seen["equal"] == dict.fromkeys(seen["equal"], True)
    assert len(seen["equal"]) >= 8


def test_a_dropped_prompt_starts_from_its_prefix_again(family: dict[str, Any]) -> None:
    for way, seen in family.items():
        hits = [cached for what, cached in seen["cached_tokens"].items() if what.startswith("with a prefix")]
        assert len(hits) >= 3
        assert all(cached >= 128 for cached in hits) or way == "no_cache"


def test_what_stays_of_a_cut_cohort_is_found_again(family: dict[str, Any]) -> None:
    for way, seen in family.items():
        assert seen["cached_tokens"]["what follows it"] >= 64 or way == "no_cache"
