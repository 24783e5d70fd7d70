"""What requests may ask of SGLang 0.5.23 and not of 0.5.17, beside cohorts."""

from __future__ import annotations

from typing import Any

import pytest

from exact_pipeline import exact_pipeline
from harness import SteppedScheduler
from prompts import prompt
from release_differences import OF_0_5_23

pytestmark = OF_0_5_23
MASKED = {"return_sampling_mask": True}


def masks_of(stepped: SteppedScheduler, rid: str) -> list[tuple[list[int], float]]:
    """Of each token that the client of `rid` was sent: which ones it was chosen from, and its logarithm."""
    found = []
    for output in stepped.detokenizer.sent:
        if rid in (getattr(output, "rids", None) or []):
            chunk = output.output_token_sampling_mask[output.rids.index(rid)]
            masks, logprobs = chunk.to_lists(False)
            found += list(zip(masks, logprobs, strict=True))
    return found


def answers(stepped: SteppedScheduler) -> list[Any]:
    """Masks of a row that decodes and of two prompts beside it, one of which asks for none."""
    decode = stepped.send(prompt(20, 1), 30, sampling={"top_k": 1}, **MASKED)
    stepped.step(3)
    plain = stepped.send(prompt(60, 2), 4)
    masked = stepped.send(prompt(150, 3), 4, sampling={"top_k": 1}, **MASKED)
    outputs = stepped.finish(decode, plain, masked)
    stepped.step_until(stepped.scheduler.is_fully_idle)
    return [outputs, masks_of(stepped, decode), masks_of(stepped, masked)]


def test_masks_of_sampling_are_those_of_chunked_mode(stepped: SteppedScheduler) -> None:
    found = answers(stepped)
    assert [ids for ids, _ in found[1]] == [[token] for token in found[0][0]]
    assert [ids for ids, _ in found[2]] == [[token] for token in found[0][2]]
    assert stepped.change({"layered_prefill": 0})
    expected = answers(stepped)
    assert stepped.change({"layered_prefill": 1})
    assert found[0] == expected[0]
    for mine, stock in zip(found[1:], expected[1:], strict=True):
        assert [ids for ids, _ in mine] == [ids for ids, _ in stock]
        assert [value for _, value in mine] == pytest.approx([value for _, value in stock], abs=1e-4)


def test_masks_of_sampling_are_refused_over_pipeline_stages(stepped: SteppedScheduler) -> None:
    if stepped.scheduler.enable_overlap:
        pytest.skip(reason="SGLang's pipeline loop has no overlap scheduler: run with --without-overlap")
    with exact_pipeline(stepped, (0, 3, 6, 8)):
        with pytest.raises(IndexError):  # nothing waits
            stepped.send(prompt(120, 2), 5, sampling={"top_k": 1}, **MASKED)
        assert_refused(stepped, "return_sampling_mask is not tested over the pipeline stages")


def assert_refused(stepped: SteppedScheduler, message: str) -> None:
    [reason] = stepped.detokenizer.sent[-1].finished_reasons
    assert reason["status_code"] == 400
    assert message in reason["message"]
    assert stepped.scheduler.is_fully_idle()


def test_a_beam_search_is_answered_with_400(stepped: SteppedScheduler) -> None:
    with pytest.raises(IndexError):  # nothing waits
        stepped.send(prompt(20, 5), 3, sampling={"beam_width": 2})
    assert_refused(stepped, "Beam search is not tested beside a cohort")


def test_a_prompt_without_tokens_is_answered_with_400(stepped: SteppedScheduler) -> None:
    """A text of which the tokenizer makes nothing; the release ends in its forward."""
    stepped.send((), 3)
    stepped.step_until(stepped.scheduler.is_fully_idle)
    assert_refused(stepped, "The prompt has no tokens")
