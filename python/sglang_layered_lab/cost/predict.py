"""How long a prompt and the requests beside it wait, by a step-time model: predicted, not measured. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from sglang_layered_lab.cost.model import StepModel
from sglang_layered_lab.cost.ways import NOTHING, Beside, Way, prompt_steps


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
    model: StepModel,
    way: Way,
    prompt_tokens: int,
    beside: Beside = NOTHING,
    *,
    wait_steps: float = 0.0,
    delay_steps: int = 0,
) -> Prediction:
    """Predict one prompt's way.

    Args:
        model: sizes, coverage and costs.
        way: how the prompt is scheduled.
        prompt_tokens: to compute.
        beside: the running requests.
        wait_steps: decode steps before the prompt's first one; 0.5 if it comes at any moment of one.
        delay_steps: steps that run before the client gets a token; 1 on a CPU with the overlap scheduler.

    Raises:
        ConfigError: the way does not suit the model or the running requests.
    """
    works = [model.work(step) for step in prompt_steps(model.shape.num_layers, way, prompt_tokens, beside)]
    times_s = [model.costs.time_s(work) for work in works]
    decode_s, next_s = (model.step_s(each.step()) for each in (beside, beside.joined_by(prompt_tokens)))
    pause_s = sum(times_s) + (1 - delay_steps) * next_s if way.decodes_wait else max(times_s)
    return Prediction(
        way=way,
        prompt_tokens=prompt_tokens,
        beside=beside,
        num_steps=len(works),
        ttft_s=model.costs.request + wait_steps * decode_s + sum(times_s) + delay_steps * next_s,
        worst_step_s=max(times_s),
        worst_gap_s=pause_s if beside.decode_rows else None,
        decode_step_s=decode_s,
        expert_bytes=sum(work.expert_bytes for work in works),
    )
