"""The layered server and the release side by side, with the same flags."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import servers
from servers import Served
from sglang_layered_lab.serving import ServerProcess

COMMON = (*servers.COMMON, "--disable-overlap-schedule")
FLAGS = ("--grammar-backend", "llguidance", "--enable-metrics", "--enable-priority-scheduling")
FLAGS += ("--enable-return-hidden-states", "--enable-custom-logit-processor")
FLAGS += ("--chunked-prefill-size", "1024", "--served-model-name", "default")
# The release takes input embeddings only in bfloat16 and without the radix cache.
# Both servers attend in the same way: another way rounds otherwise.
BFLOAT16_FLAGS = ("--dtype", "bfloat16", "--disable-radix-cache", "--attention-backend", "torch_native")
SESSION_FLAGS = ("--enable-streaming-session", "--disable-radix-cache")
GROUP_TOKENS = 64
LAYERED = ("--prefill-mode", "layered", "--layered-group-tokens", str(GROUP_TOKENS))
LAYERED += ("--layered-check-invariants", "strict")


@contextmanager
def serve_both(
    folder: Path, model: Path, release: Path, flags: Sequence[str]
) -> Iterator[tuple[Served, Served]]:
    """Start both at once; `release` is the folder with SGLang as released."""
    steps = folder / "steps.jsonl"
    listener = ("--layered-listeners", f"jsonl={steps}")
    layered = ServerProcess(
        model,
        [*COMMON, *flags, *LAYERED, *listener],
        log_path=folder / "layered.log",
        env=servers.forked(),
        grace_s=servers.GRACE_S,
    )
    stock = ServerProcess(
        model,
        [*COMMON, *flags],
        log_path=folder / "stock.log",
        env=servers.forked({"PYTHONPATH": str(release)}),
        grace_s=servers.GRACE_S,
    )
    with ThreadPoolExecutor(2) as pool:
        try:
            list(pool.map(ServerProcess.start, (layered, stock)))
            yield Served(layered, steps), Served(stock)
        finally:
            list(pool.map(ServerProcess.stop, (layered, stock)))
