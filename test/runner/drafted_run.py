"""Stock scheduling of a family with each of some algorithms, as JSON: OUT, ARCH, names in `drafted.ALGORITHMS`.

A name may end in `+overlap`.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from drafted import close, drafted_scheduler, play


def main() -> None:
    out, arch, *names = sys.argv[1:]
    found: dict[str, Any] = {}
    for name in names:
        started_s = time.monotonic()
        algorithm, _, how = name.partition("+")
        stepped = drafted_scheduler(arch, algorithm, overlap=bool(how))
        played = play(stepped)
        found[name] = asdict(played) | {"acceptance_length": played.acceptance_length}
        del stepped
        close()
        length, took_s = played.acceptance_length, time.monotonic() - started_s
        print(f"{arch} {name}: {length:.3f} tokens a step, {took_s:.1f} s", file=sys.stderr)
        Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
