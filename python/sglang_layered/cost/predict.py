"""How long a prompt and the requests beside it wait, by a step-time model: predicted, not measured. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from sglang_layered.cost.model import StepModel
from sglang_layered.cost.ways import NOTHING, Beside, Way, prompt_steps


@dataclass(frozen=True, slots=True)
class Prediction:
    """One prompt beside running requests, all in seconds and bytes.

    `ttft_s` runs from the prompt's sending: what the request itself waits for, the rest of the step that is
    under way, then its steps. `worst_gap_s` is the longest time between two tokens of a running request
    until the prompt has its first; None where nothing runs. Expert bytes are those of all rows in the
    prompt's steps.
    """

    way: Way
    prompt_tokens: int
    beside: Beside
    num_steps: int
    ttft_s: float
    worst_step_s: float
    worst_gap_s: float | None
    decode_step_s: float  # of the running requests alone
    expert_bytes: float


def predict_prompt(
    model: StepModel, way: Way, prompt_tokens: int, beside: Beside = NOTHING, *, wait_steps: float = 0.0
) -> Prediction:
    """Predict one prompt's way.

    Args:
        model: sizes, coverage and costs.
        way: how the prompt is scheduled.
        prompt_tokens: its tokens to compute.
        beside: the running requests.
        wait_steps: decode steps that pass before the prompt's first one; 0.5 for a prompt that comes at any
            moment of the step under way.

    Raises:
        ConfigError: the way does not suit the model or the running requests.
    """
    steps = prompt_steps(model.shape.num_layers, way, prompt_tokens, beside)
    works = [model.work(step) for step in steps]
    times_s = [model.costs.time_s(work) for work in works]
    decode_s = model.step_s(beside.step())
    worst_gap_s = max(times_s)
    if way.decodes_wait:
        worst_gap_s = sum(times_s) + model.step_s(beside.joined_by(prompt_tokens).step())
    return Prediction(
        way=way,
        prompt_tokens=prompt_tokens,
        beside=beside,
        num_steps=len(steps),
        ttft_s=model.costs.request + wait_steps * decode_s + sum(times_s),
        worst_step_s=max(times_s),
        worst_gap_s=worst_gap_s if beside.decode_rows else None,
        decode_step_s=decode_s,
        expert_bytes=sum(work.expert_bytes for work in works),
    )
