"""What scripts share that check models one after another: a case that fails is told of, and the next runs."""

from __future__ import annotations

import gc
import json
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any


def check_all(
    out: Path, names: Iterable[str], check: Callable[[str], dict[str, Any]], close: Callable[[], None]
) -> None:
    """Check each name; write what was seen to `out` as JSON, after every one. `close` ends its scheduler."""
    gc.freeze()  # what was imported; it takes a second to look through, and `close` does
    results: dict[str, dict[str, Any]] = {}
    for name in names:
        started_s = time.monotonic()
        try:
            results[name] = check(name)
        except Exception:
            results[name] = {"error": traceback.format_exc()}
        close()
        print(f"{name}: {time.monotonic() - started_s:.1f} s", file=sys.stderr)
        out.write_text(json.dumps(results, indent=2) + "\n")
