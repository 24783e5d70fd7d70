"""The events of a server's JSONL file that nobody has read yet: who polls reads each line once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson


class EventTail:
    """Reads a file that grows, from a place on, which is its start if none is given."""

    def __init__(self, path: Path, place: int = 0) -> None:
        self._path = path
        self._place = place

    def new(self) -> Iterator[dict[str, Any]]:
        """Events since the last call; a line still being written is left for the next one."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._place)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._place += len(line)
                yield orjson.loads(line)
