"""What a kind of step calls, by whose code it is: other work on the machine does not change how often.

Times of a profiler, of the CPU here, are for comparison with each other: it makes small functions look dear.
"""

from __future__ import annotations

import cProfile
import pstats
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

MOST_FUNCTIONS = 25
OWNERS = {  # by what a file's path has in it, the first that fits
    "cuda_emulation": "emulation",
    "test/runner": "emulation",
    "sglang_layered": "layered",
    "sglang/": "SGLang",
}
ELSE = "Python and torch"


class StepCalls:
    """A profiler to be switched on around steps of one kind."""

    def __init__(self) -> None:
        self._profiler = cProfile.Profile(time.thread_time)
        self._num_steps = 0

    def __enter__(self) -> None:
        self._num_steps += 1
        self._profiler.enable()

    def __exit__(self, *error: object) -> None:
        self._profiler.disable()

    def summary(self) -> dict[str, Any]:
        """A step's calls and microseconds by owner, and the functions with most time of their own."""
        calls: Counter[str] = Counter()
        own_us: defaultdict[str, float] = defaultdict(float)
        functions = []
        for (path, line, name), (_, count, own_s, _, _) in pstats.Stats(self._profiler).stats.items():  # type: ignore[attr-defined]
            owner, each = owner_of(path), 1e6 * own_s / self._num_steps
            calls[owner] += count
            own_us[owner] += each
            where = name if owner == ELSE and not line else f"{_short(path)}:{name}"
            functions.append((each, {"function": where, "calls": round(count / self._num_steps, 2)}))
        functions.sort(key=lambda item: -item[0])
        return {
            "steps": self._num_steps,
            "calls": {owner: round(count / self._num_steps, 1) for owner, count in calls.most_common()},
            "own_us": {owner: round(time, 1) for owner, time in own_us.items()},
            "functions": [about | {"own_us": round(each, 1)} for each, about in functions[:MOST_FUNCTIONS]],
        }


def owner_of(path: str) -> str:
    """Whose code a file is."""
    return next((owner for part, owner in OWNERS.items() if part in path), ELSE)


def _short(path: str) -> str:
    return "/".join(Path(path).parts[-2:])
