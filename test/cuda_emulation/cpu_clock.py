"""CPU time of one thread, told apart by what runs."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

Step = dict[str, float]  # milliseconds by part, and how many graphs it launched


class Clock:
    """CPU time by the `parts` that are told; time inside of another part counts there alone."""

    def __init__(self, parts: tuple[str, ...]) -> None:
        self._told = parts
        self.spent: dict[str, float] = defaultdict(float)
        self._parts, self._since = [parts[-1]], time.thread_time()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """What runs inside counts as this part."""
        self._lap()
        self._parts.append(name)
        try:
            yield
        finally:
            self._lap()
            self._parts.pop()

    def watch(self, owner: Any, method: str, part: str) -> None:
        """Count each call of a method as this part."""
        call = getattr(owner, method)

        def counted(*args: Any, **kwargs: Any) -> Any:
            with self.part(part):
                return call(*args, **kwargs)

        (type if isinstance(owner, type) else object).__setattr__(owner, method, counted)

    def take(self) -> Step:
        """Milliseconds since the last time, by part."""
        self._lap()
        taken = {part: 1e3 * self.spent[part] for part in self._told}
        self.spent.clear()
        return taken

    def _lap(self) -> None:
        now = time.thread_time()
        self.spent[self._parts[-1]] += now - self._since
        self._since = now
