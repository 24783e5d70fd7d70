"""What becomes of a policy's wishes (`core/questions.py`): nobody waits for ever, whatever it says. Pure.

The scheduler and simulations call the same functions. They raise ValueError for an answer without a meaning.
"""

from collections.abc import Sequence
from math import isfinite

import numpy as np

from sglang_layered.core.questions import Numbers, Queue, Running, Waiting

MOST_LOOKED_AT = 128  # prompts of the queue that a policy sees
MOST_PASSED = 256  # times that others may be admitted before a prompt, or that it may be left out
MOST_HELD_S = 1.0  # between two admissions
MOST_SAT_OUT = 4  # steps in a row


def admitted_in(answer: Sequence[int] | Numbers, waiting: Sequence[Waiting]) -> list[int]:
    """Who may be admitted, in this order: first those that were passed too often, the oldest first."""
    chosen: list[int] = _indices("order", answer, len(waiting)).tolist()
    overdue = (Queue.of(waiting).passed >= MOST_PASSED).nonzero()[0].tolist()
    return [*overdue, *(index for index in chosen if index not in overdue)] if overdue else chosen


def held_for(answer_s: float, held_s: float) -> float:
    """Seconds that prompts are held from now on, after `held_s` since the last admission."""
    if not (isfinite(answer_s) and answer_s >= 0):
        raise ValueError(f"hold gave {answer_s!r}; give seconds, 0 for none")
    return max(min(answer_s, MOST_HELD_S - held_s), 0.0)


def overtaking(
    answer: Sequence[int] | Numbers | None, waiting: Sequence[Waiting], max_tokens: int
) -> list[int]:
    """Who goes before the cohort in flight: as many, in the order of the answer, as `max_tokens` hold."""
    if answer is None or len(answer) == 0:
        return []
    chosen = _indices("preempt", answer, len(waiting))
    together = Queue.of(waiting).tokens[chosen].cumsum()
    fitting: list[int] = chosen[: int(together.searchsorted(max_tokens, "right"))].tolist()
    return fitting


def decoding(answer: Sequence[int] | Numbers | None, running: Running) -> list[int] | None:
    """Who decodes, in the order of the batch; None: all."""
    if answer is None or len(answer) == 0:
        return None
    chosen = answer if isinstance(answer, list) else np.asarray(answer, np.int64).tolist()
    if not 0 <= min(chosen) <= max(chosen) < len(running):
        raise ValueError(f"decode_rows gave {list(answer)}; give indices below {len(running)}")
    overdue = (running.sat_out >= MOST_SAT_OUT).nonzero()[0].tolist()
    found = sorted({*map(int, chosen), *overdue})
    return None if len(found) == len(running) else found


def _indices(question: str, answer: Sequence[int] | Numbers, count: int) -> Numbers:
    """The answer as an array, each index once."""
    found = np.asarray(answer, np.int64)
    if len(found):
        in_order = found.copy()
        in_order.sort()
        is_twice = np.count_nonzero(in_order[1:] == in_order[:-1])
        if is_twice or in_order[0] < 0 or in_order[-1] >= count:
            raise ValueError(f"{question} gave {found.tolist()}; give indices below {count}, each once")
    return found
