"""Tokens over time: which stream to show, the same one in every arm, and its course. Pure.

Chosen is what shows most: the longest pause under the baseline. With streams in the background it is a
background stream's pause beside a prompt, else a request's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sglang_layered_lab.bench.figure_data import titles_of
from sglang_layered_lab.bench.metrics import RequestMetrics
from sglang_layered_lab.bench.record import Repetition
from sglang_layered_lab.bench.sweep_result import CellResult
from sglang_layered_lab.bench.trace import Arrival, RequestTrace

if TYPE_CHECKING:
    from sglang_layered_lab.bench.plots import TokenStream

TAIL = 0.25  # of the longest prefill: how much longer the background is shown
SINCE_DUE = "seconds since the request was due   ·   mark: its first token"
SINCE_SENT = "seconds since the prompt was sent   ·   mark: the prompt's first token"

Rounds = Mapping[str, Sequence[Repetition]]  # by arm, the rounds that all arms have


@dataclass(frozen=True, slots=True)
class StreamData:
    """One stream an arm. `which` says which one it is and why; `since` what its times begin with."""

    streams: tuple[TokenStream, ...]
    which: str
    since: str


@dataclass(frozen=True, slots=True)
class _Pause:
    """Seconds without a token of what lies at these places of the baseline's rounds."""

    pause_s: float
    round_place: int
    request: int
    background: int | None = None


def token_streams(cells: Sequence[CellResult], baseline: str) -> StreamData | None:
    """The stream with the longest pause under the baseline; None where all arms served no request alike.

    Args:
        cells: all arms at one point.
        baseline: name of the arm that chooses; the first arm does where it has no record.
    """
    rounds = _common_rounds(cells)
    if not rounds:
        return None
    chooser = baseline if baseline in rounds else next(iter(rounds))
    has_background = all(each.background for repetitions in rounds.values() for each in repetitions)
    pauses = _beside(rounds, chooser) if has_background else _own(rounds, chooser)
    longest = max(pauses, key=lambda each: each.pause_s, default=None)
    if longest is None:
        return None
    show = _background_streams if has_background else _request_streams
    streams, what = show(cells, rounds, longest)
    repetition = rounds[chooser][longest.round_place]
    prompt_tokens = repetition.traces[longest.request].prompt_tokens
    which = (
        f"{what} {longest.request} (prompt of {prompt_tokens} tokens) of repetition {repetition.index}:"
        f" it has the longest pause under {titles_of(cells)[chooser]}, {longest.pause_s:.3g} s"
    )
    return StreamData(tuple(streams), which, SINCE_SENT if has_background else SINCE_DUE)


def _common_rounds(cells: Sequence[CellResult]) -> dict[str, list[Repetition]]:
    by_arm = {cell.arm: {each.index: each for each in cell.record.repetitions} for cell in cells}
    common = sorted(set.intersection(*(set(rounds) for rounds in by_arm.values()))) if by_arm else []
    return {arm: [rounds[index] for index in common] for arm, rounds in by_arm.items()} if common else {}


def _shared_requests(rounds: Rounds) -> Iterator[tuple[int, int]]:
    """Places (round, request) of requests that every arm was asked for alike and served to their end."""
    for round_place, arms in enumerate(zip(*rounds.values(), strict=True)):
        for request, traces in enumerate(zip(*(each.traces for each in arms), strict=False)):
            asked = {(trace.prompt_tokens, trace.max_output_tokens) for trace in traces}
            if len(asked) == 1 and all(trace.error is None and trace.arrivals for trace in traces):
                yield round_place, request


def _own(rounds: Rounds, chooser: str) -> Iterator[_Pause]:
    for round_place, request in _shared_requests(rounds):
        trace = rounds[chooser][round_place].traces[request]
        yield _Pause(RequestMetrics.of(trace).worst_gap_s, round_place, request)


def _beside(rounds: Rounds, chooser: str) -> Iterator[_Pause]:
    """The background's gaps that overlap a prompt's time from its sending to its first token."""
    for round_place, request in _shared_requests(rounds):
        repetition = rounds[chooser][round_place]
        prompt = repetition.traces[request]
        for place, stream in enumerate(repetition.background):
            times_s = np.array([each.time_s for each in stream.arrivals])
            first = np.searchsorted(times_s[1:], prompt.sent_s, "right")
            last = np.searchsorted(times_s[:-1], prompt.arrivals[0].time_s, "left")
            if first < last:
                pause_s = float(np.diff(times_s)[first:last].max())
                yield _Pause(pause_s, round_place, request, place)


def _request_streams(
    cells: Sequence[CellResult], rounds: Rounds, chosen: _Pause
) -> tuple[list[TokenStream], str]:
    found: list[TokenStream] = []
    for cell in cells:
        trace = rounds[cell.arm][chosen.round_place].traces[chosen.request]
        found.append(_stream(cell, cells, trace.arrivals, trace.due_s, 0))
    return found, "request"


def _background_streams(
    cells: Sequence[CellResult], rounds: Rounds, chosen: _Pause
) -> tuple[list[TokenStream], str]:
    """The chosen background stream from the prompt's sending until after the slowest arm's prefill."""
    assert chosen.background is not None
    prompts = {arm: each[chosen.round_place].traces[chosen.request] for arm, each in rounds.items()}
    longest_s = max(_prefill_s(prompt) for prompt in prompts.values())
    found: list[TokenStream] = []
    for cell in cells:
        stream = rounds[cell.arm][chosen.round_place].background[chosen.background]
        sent_s = prompts[cell.arm].sent_s
        before = [each.num_tokens for each in stream.arrivals if each.time_s <= sent_s]
        end_s = sent_s + (1 + TAIL) * longest_s
        shown = [each for each in stream.arrivals if sent_s < each.time_s <= end_s]
        drawn = _stream(cell, cells, shown, sent_s, before[-1] if before else 0)
        last_s = min(end_s, max(stream.arrivals[-1].time_s, sent_s))  # where it was broken off, it ends
        drawn |= {"mark_s": _prefill_s(prompts[cell.arm]), "end_s": last_s - sent_s}
        found.append(drawn)
    return found, f"running stream {chosen.background} beside request"


def _prefill_s(prompt: RequestTrace) -> float:
    return prompt.arrivals[0].time_s - prompt.sent_s


def _stream(
    cell: CellResult, cells: Sequence[CellResult], shown: Sequence[Arrival], zero_s: float, num_before: int
) -> TokenStream:
    return {
        "mode": cell.mode,
        "label": titles_of(cells)[cell.arm],
        "times_s": [each.time_s - zero_s for each in shown],
        "num_tokens": [each.num_tokens - num_before for each in shown],
    }
