"""What stands between SGLang's workers of speculative decoding and a step that is no batch of SGLang's."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from sglang_layered.upstream.speculation import (
    advance_grammars_of_steps,
    answering,
    must_settle,
    profiled_as,
)


def test_grammars_advance_over_the_batches_of_pending_steps() -> None:
    """SGLang's own takes the queue for pairs of a batch and its result."""
    advanced: list[tuple[str, str]] = []
    outcomes = [SimpleNamespace(batch_at_launch=f"batch {name}", result=f"result {name}") for name in "abc"]
    scheduler = SimpleNamespace(
        result_queue=[SimpleNamespace(outcomes=outcomes[:2]), SimpleNamespace(outcomes=outcomes[2:])],
        batch_result_processor=SimpleNamespace(advance_grammar_fsm=lambda *each: advanced.append(each)),
    )
    advance_grammars_of_steps(scheduler)
    scheduler._advance_pending_grammar()
    assert advanced == [(f"result {name}", f"batch {name}") for name in "abc"]


def test_a_model_runner_answers_itself_again_after_an_error() -> None:
    class Runner:
        def forward(self, batch: Any) -> str:
            return f"own {batch}"

    def fails(batch: str) -> str:
        assert runner.forward(batch) == "own prompt", "an answer may ask the model itself"
        raise ZeroDivisionError

    runner = Runner()
    with answering(runner, lambda batch: f"groups' {batch}"):
        assert runner.forward("prompt") == "groups' prompt"
        assert runner.forward("prompt") == "own prompt", "one forward is answered"
    with pytest.raises(ZeroDivisionError), answering(runner, fails):
        runner.forward("prompt")
    with pytest.raises(ZeroDivisionError), answering(runner, fails):
        raise ZeroDivisionError
    assert runner.forward("prompt") == "own prompt"


@pytest.mark.parametrize("enable_overlap", [False, True])
@pytest.mark.parametrize("batch", [None, SimpleNamespace()])
def test_pending_results_are_asked_about_with_overlap_alone(enable_overlap: bool, batch: Any) -> None:
    scheduler = SimpleNamespace(
        enable_overlap=enable_overlap, is_disable_overlap_for_batch=lambda batch, last_batch: True
    )
    assert must_settle(scheduler, batch) == (enable_overlap and batch is not None)


def test_a_profile_by_stage_takes_a_step_for_one_of_its_prompt() -> None:
    """As it does layered steps without drafts; else no prompt would be profiled while others decode."""

    class Profiler:
        def __init__(self) -> None:
            self.told: list[str] = []

        def _profile_batch_predicate(self, batch: str) -> None:
            self.told.append(batch)

    profiler: Any = Profiler()
    with profiled_as(profiler, "prompt"):  # type: ignore[arg-type]
        profiler._profile_batch_predicate("decode")
    profiler._profile_batch_predicate("decode")
    assert profiler.told == ["prompt", "decode"]
