"""Times of single prompts beside streams that decode, read off the client's raw times. Pure.

A duel sends one prompt after another beside B streams. A stream gets a token in every step, so its gaps
while a prompt is in prefill are the prompt's steps, in order, seen from the client: each step's own
overhead is in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import fmean, median

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


@dataclass(frozen=True, slots=True)
class DuelTimes:
    """A configuration: medians over its prompts."""

    decode_rows: int
    num_prompts: int
    times: PromptTimes


def duel_times(repetitions: Sequence[Repetition], num_steps: int | None, delay_steps: int = 0) -> DuelTimes:
    """Medians over the prompts of a record.

    Args:
        repetitions: of one record; each prompt has as many tokens.
        num_steps: steps of a prompt beside the streams; None where the streams wait for the whole prompt.
        delay_steps: steps that run after a token's own before the client gets it.

    Raises:
        BenchError: no prompt can be used, or the gaps show other steps than these.
    """
    seen = [times for each in repetitions for times in _of_repetition(each, num_steps, delay_steps)]
    if not seen:
        raise BenchError(
            "no prompt whose steps can be read off: the streams' tokens came in lumps, or none came"
        )
    num_streams = len(repetitions[0].background)
    result = DuelTimes(num_streams, len(seen), _median(seen))
    _check_steps(result.times)
    return result


def _of_repetition(repetition: Repetition, num_steps: int | None, delay_steps: int) -> Iterator[PromptTimes]:
    for prompt in repetition.traces:
        if prompt.error is None and prompt.arrivals:
            times = _of_prompt(prompt, repetition.background, num_steps, delay_steps)
            if times is not None:
                yield times


def _of_prompt(
    prompt: RequestTrace, streams: Sequence[RequestTrace], num_steps: int | None, delay_steps: int
) -> PromptTimes | None:
    first_s = prompt.arrivals[0].time_s
    own_s = _gaps([pair for pair in pairwise(prompt.arrivals) if _is_one(*pair)])
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
        if not pauses:
            return None
        return replace(seen, steps_s=(median(pauses),), context_tokens=fmean(contexts))
    windows = [
        window for each in streams if (window := _window(each.arrivals, first_s, num_steps, delay_steps))
    ]
    if not windows:
        return None
    before_s, *steps_s = (median(each) for each in zip(*map(_gaps, map(pairwise, windows)), strict=True))
    return replace(
        seen,
        steps_s=tuple(steps_s),
        wait_s=median(window[1].time_s for window in windows) - prompt.sent_s,
        before_s=before_s,
        context_tokens=fmean(contexts) - num_steps,
    )


def _gaps(pairs: Iterable[tuple[Arrival, Arrival]]) -> list[float]:
    return [after.time_s - before.time_s for before, after in pairs]


def _window(
    arrivals: Sequence[Arrival], first_s: float, num_steps: int, delay_steps: int
) -> Sequence[Arrival] | None:
    """Tokens around the steps before the first token, and the one before; None where they came in lumps.

    The stream's token of the step that gives the prompt's first is the one that came nearest to it in time.
    """
    last = min(range(len(arrivals)), key=lambda index: abs(arrivals[index].time_s - first_s), default=0)
    last -= delay_steps
    window = arrivals[max(last - num_steps - 1, 0) : last + 1]
    if len(window) != num_steps + 2 or not all(_is_one(*each) for each in pairwise(window)):
        return None
    return window


def _context_at(stream: RequestTrace, first_s: float) -> int:
    """Tokens that the stream's row sees in the step after the one that gave the prompt its first token."""
    nearest = min(stream.arrivals, key=lambda each: abs(each.time_s - first_s), default=None)
    return stream.prompt_tokens + (nearest.num_tokens if nearest else 0)


def _is_one(before: Arrival, after: Arrival) -> bool:
    return after.num_tokens == before.num_tokens + 1


def _median(seen: Sequence[PromptTimes]) -> PromptTimes:
    """Field by field."""
    return PromptTimes(
        prompt_tokens=seen[0].prompt_tokens,
        ttft_s=median(each.ttft_s for each in seen),
        steps_s=tuple(median(each) for each in zip(*(each.steps_s for each in seen), strict=True)),
        wait_s=_known([each.wait_s for each in seen]),
        before_s=_known([each.before_s for each in seen]),
        context_tokens=median(each.context_tokens for each in seen),
        decode_s=_known([each.decode_s for each in seen]),
        decode_context_tokens=median(each.decode_context_tokens for each in seen),
    )


def _known(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


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
