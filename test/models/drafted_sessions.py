"""Turns of streaming sessions with drafts, against whole conversations that are asked at once."""

from __future__ import annotations

from harness import SteppedScheduler
from prompts import prompt

# Tokens of the answers of each session's turns: some end with a verified step's last token, some before it.
ANSWERS = ((4, 5, 7), (7, 3, 7), (8, 5, 7))


def right_turns(stepped: SteppedScheduler, num_background: int) -> list[list[bool]]:
    """Of each session which turns, beside a request that decodes, were answered as the whole conversation."""
    return [_session(stepped, lengths, num_background) for lengths in ANSWERS]


def _session(stepped: SteppedScheduler, lengths: tuple[int, ...], num_background: int) -> list[bool]:
    asked = [prompt(60 if not turn else 30, 980 + 10 * lengths[0] + turn) for turn in range(len(lengths))]
    stepped.drain()
    assert stepped.change({"layered_prefill": 1, "layered_num_groups": stepped.num_layers})
    stepped.send(prompt(20, 71), num_background)
    stepped.step(3)
    stepped.open_session("turns")
    answers = [
        stepped.finish(stepped.send(tokens, length, session="turns"))[0]
        for tokens, length in zip(asked, lengths, strict=True)
    ]
    stepped.close_session("turns")
    right, conversation = [], list[int]()
    for tokens, answer in zip(asked, answers, strict=True):
        stepped.drain()
        assert stepped.change({"layered_prefill": 0})
        conversation += tokens
        [alone] = stepped.finish(stepped.send(conversation, len(answer)))
        right.append(alone == answer)
        conversation += answer
    return right
