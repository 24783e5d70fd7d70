"""Features that need servers of their own: input embeddings on a dense model, streaming sessions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import features_scenarios as scenarios
from features_client import (
    Pair,
    assert_same,
    events,
    generate,
)
from features_requests import (
    GREEDY,
)
from features_servers import BFLOAT16_FLAGS, SESSION_FLAGS, serve_both


@pytest.fixture
def bfloat16(tiny_llama: Path, pristine_site: Path, tmp_path: Path) -> Iterator[Pair]:
    """A dense model: with experts the last bit depends on which of them the neighbours chose just then."""
    with serve_both(tmp_path, tiny_llama, pristine_site, BFLOAT16_FLAGS) as served:
        yield Pair(*served)


@pytest.fixture(scope="module")
def streaming(
    tiny_qwen3_moe: Path, pristine_site: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pair]:
    with serve_both(
        tmp_path_factory.mktemp("streaming"), tiny_qwen3_moe, pristine_site, SESSION_FLAGS
    ) as served:
        yield Pair(*served)


def test_input_embeds(bfloat16: Pair) -> None:
    for seed in range(3):
        inputs = scenarios.embeds(300, seed)
        body = {"input_embeds": inputs, "sampling_params": GREEDY, "return_logprob": True}
        assert_same(*bfloat16.both_beside(lambda served, body=body: generate(served, body)))


def test_streaming_sessions(streaming: Pair) -> None:
    assert_same(*streaming.both_beside(scenarios.streaming_conversation))


def test_streaming_session_goes_on_after_an_aborted_turn(streaming: Pair) -> None:
    already = len(events(streaming.layered))
    assert_same(*streaming.both_beside(scenarios.interrupted_conversation, each_layered=False))
    assert scenarios.drops_of(events(streaming.layered)[already:], "interrupted") == ["aborted"]
