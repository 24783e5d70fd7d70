"""Stock scheduling of families with some algorithms, as JSON: OUT, by family names in `drafted.ALGORITHMS`.

A name may end in `+overlap`; or in `+blind`, and the draft gets no hidden states of a prompt but the last; or
in `+lost`, and it gets none of the last either.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from drafted import close, drafted_scheduler, play  # first: it says how Triton's functions run

# isort: split
import torch
from own_process import in_forks
from sglang.srt.speculative.eagle_worker_v2 import EagleDraftWorker


@contextmanager
def without_states(how: str) -> Iterator[None]:
    """What a layered step that loses rows of its prompts would hand to the draft."""
    extend = EagleDraftWorker._draft_extend_for_prefill

    def losing(worker: Any, batch: Any, states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        kept = torch.zeros_like(states)
        if how == "blind":
            last = torch.tensor(batch.extend_lens).cumsum(0) - 1
            kept[last] = states[last]
        return extend(worker, batch, kept, *args, **kwargs)

    EagleDraftWorker._draft_extend_for_prefill = losing if how in ("blind", "lost") else extend
    yield
    EagleDraftWorker._draft_extend_for_prefill = extend


def play_all(arch: str, names: list[str]) -> dict[str, Any]:
    """What was played with each algorithm on a family's model."""
    found: dict[str, Any] = {}
    for name in names:
        started_s = time.monotonic()
        algorithm, _, how = name.partition("+")
        stepped = drafted_scheduler(arch, algorithm, overlap=how == "overlap")
        with without_states(how):
            played = play(stepped)
        found[name] = asdict(played) | {"acceptance_length": played.acceptance_length}
        del stepped
        close()
        length, took_s = played.acceptance_length, time.monotonic() - started_s
        print(f"{arch} {name}: {length:.3f} tokens a step, {took_s:.1f} s", file=sys.stderr)
    return found


def main() -> None:
    out, runs = Path(sys.argv[1]), json.loads(sys.argv[2])
    plays = {arch: partial(play_all, arch, names) for arch, names in runs.items()}
    out.write_text(json.dumps(in_forks(plays)))


if __name__ == "__main__":
    main()
