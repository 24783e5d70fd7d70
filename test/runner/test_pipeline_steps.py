"""The pipeline loop tick by tick on virtual stages, with answers that are known."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from exact_pipeline import ExactPipeline, exact_pipeline
from harness import SteppedScheduler
from prompts import prompt

CUTS = (0, 3, 6, 8)


@pytest.fixture
def exact(stepped: SteppedScheduler) -> Iterator[ExactPipeline]:
    if stepped.scheduler.enable_overlap:
        pytest.skip(reason="SGLang's pipeline loop has no overlap scheduler: run with --without-overlap")
    with exact_pipeline(stepped, CUTS) as exact:
        yield exact


def test_a_whole_prompt_and_a_cohort(exact: ExactPipeline) -> None:
    exact.send(prompt(10, 1), 30)
    exact.step(7)
    exact.send(prompt(200, 2), 5)
    exact.step(2)
    assert exact.cohort
    exact.settle()
