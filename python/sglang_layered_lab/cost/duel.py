"""Times of single prompts beside streams that decode, read off the client's raw times. Pure.

A duel sends one prompt after another beside B streams. A stream gets a token in every step, so its gaps
while a prompt is in prefill are the prompt's steps, in order, seen from the client: each step's own
overhead is in it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from statistics import fmean, median
from typing import Any

from sglang_layered.errors import BenchError
from sglang_layered_lab.bench.beside import gaps_beside
from sglang_layered_lab.bench.record import Repetition
from sglang_layered_lab.bench.trace import Arrival, RequestTrace


@dataclass(frozen=True, slots=True)
class PromptTimes:
    """One prompt. `steps_s` are the streams' gaps over its steps, medians over streams; empty without any.

    `wait_s` is the time from its sending to its first step, `before_s` the streams' gap right before that
    one; None where the streams wait, or there are none. `context_tokens` are what a stream's row sees in
    the first step, one more in each after it. `decode_s` is the prompt's own median gap, in steps with one
    row more than there are streams, where a row sees `decode_context_tokens` on average.
    """

    prompt_tokens: int
    ttft_s: float
    steps_s: tuple[float, ...] = ()
    wait_s: float | None = None
    before_s: float | None = None
    context_tokens: float = 0.0
    decode_s: float | None = None
    decode_context_tokens: float = 0.0


def duel_times(repetitions: Sequence[Repetition], num_steps: int | None, delay_steps: int = 0) -> PromptTimes:
    """Medians over the prompts of a record, field by field.

    Args:
        repetitions: of one record; each prompt has as many tokens.
        num_steps: steps of a prompt beside the streams; None where the streams wait for the whole prompt.
        delay_steps: steps that run after a token's own before the client gets it.

    Raises:
        BenchError: no prompt can be used, or the gaps show other steps than these.
    """
    seen = [
        times
        for each in repetitions
        for prompt in each.traces
        if prompt.error is None and prompt.arrivals
        if (times := _of_prompt(prompt, each.background, num_steps, delay_steps)) is not None
    ]
    if not seen:
        raise BenchError(
            "no prompt whose steps can be read off: the streams' tokens came in lumps, or none came"
        )
    columns = {item.name: [getattr(each, item.name) for each in seen] for item in fields(PromptTimes)}
    steps_s = tuple(median(each) for each in zip(*columns.pop("steps_s"), strict=True))
    known = {name: [each for each in values if each is not None] for name, values in columns.items()}
    medians: dict[str, Any] = {name: median(values) if values else None for name, values in known.items()}
    result = PromptTimes(**medians | {"prompt_tokens": seen[0].prompt_tokens, "steps_s": steps_s})
    _check_steps(result)
    return result


def _of_prompt(
    prompt: RequestTrace, streams: Sequence[RequestTrace], num_steps: int | None, delay_steps: int
) -> PromptTimes | None:
    first_s = prompt.arrivals[0].time_s
    own_s = [
        after.time_s - before.time_s for before, after in pairwise(prompt.arrivals) if _is_one(before, after)
    ]
    contexts = [_context_at(stream, first_s) for stream in streams]
    seen = PromptTimes(
        prompt_tokens=prompt.prompt_tokens,
        ttft_s=first_s - prompt.sent_s,
        decode_s=median(own_s) if own_s else None,
        decode_context_tokens=fmean([*contexts, prompt.prompt_tokens]) + (len(own_s) + 1) / 2,
    )
    if not streams:
        return seen
    if num_steps is None:
        gaps = [gaps_beside([prompt], [each]) for each in streams]
        pauses = [float(each.max()) for each in gaps if len(each)]
        return replace(seen, steps_s=(median(pauses),), context_tokens=fmean(contexts)) if pauses else None
    windows = [
        window for each in streams if (window := _window(each.arrivals, first_s, num_steps, delay_steps))
    ]
    if not windows:
        return None
    gaps_s = [[after - before for before, after in pairwise(window)] for window in windows]
    before_s, *steps_s = (median(each) for each in zip(*gaps_s, strict=True))
    return replace(
        seen,
        steps_s=tuple(steps_s),
        wait_s=median(window[1] for window in windows) - prompt.sent_s,
        before_s=before_s,
        context_tokens=fmean(contexts) - num_steps,
    )


def _window(
    arrivals: Sequence[Arrival], first_s: float, num_steps: int, delay_steps: int
) -> list[float] | None:
    """Times of the tokens around the steps before the first token, and of the one before those.

    The stream's token of the step that gives the prompt's first is the one that came nearest to it in time.
    None where tokens came in lumps.
    """
    last = min(range(len(arrivals)), key=lambda index: abs(arrivals[index].time_s - first_s), default=0)
    last -= delay_steps
    window = arrivals[max(last - num_steps - 1, 0) : last + 1]
    if len(window) != num_steps + 2 or not all(_is_one(*each) for each in pairwise(window)):
        return None
    return [each.time_s for each in window]


def _context_at(stream: RequestTrace, first_s: float) -> int:
    """Tokens that the stream's row sees in the step after the one that gave the prompt its first token."""
    nearest = min(stream.arrivals, key=lambda each: abs(each.time_s - first_s), default=None)
    return stream.prompt_tokens + (nearest.num_tokens if nearest else 0)


def _is_one(before: Arrival, after: Arrival) -> bool:
    return after.num_tokens == before.num_tokens + 1


def _check_steps(times: PromptTimes) -> None:
    """The step before the prompt's first looks like a decode step, its first one does not.

    Steps that hardly differ from a decode step pass: they cannot tell.

    Raises:
        BenchError: the prompt took more or fewer steps than thought.
    """
    if times.wait_s is None or times.before_s is None or times.decode_s is None:
        return
    first_s, decode_s, steps_s = times.steps_s[0], times.decode_s, times.steps_s
    starts_late = len(steps_s) > 1 and first_s < 1.4 * decode_s and steps_s[1] > 2.5 * decode_s
    if times.wait_s < 0 or starts_late:
        raise BenchError(f"the prompt took fewer than {len(steps_s)} steps: its flags are not understood")
    if first_s > 1.5 * decode_s and times.before_s > (first_s + decode_s) / 2:
        raise BenchError(f"the prompt took more than {len(steps_s)} steps: its flags are not understood")
