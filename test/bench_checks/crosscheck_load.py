"""The loads of a cross-check and their server, as specs of `bench run`. Pure but for one small file.

Prompts are all as long; outputs are not, so that requests do not end together. All tools send the same
requests as text.

`open`: at the same times in all tools, those that `sglang.bench_serving` draws, since it takes no others.
`closed`: so many clients, each sending its next request when its last has ended. There a tool's own slowness
moves its requests, and against the server's steps: a request that comes just after a step began waits for
that step's end. So TTFT in a closed loop is partly the tool's.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from sglang_layered_lab.bench.spec import BenchSpec, spec_from

LoadKind = Literal["open", "closed"]
LOADS: tuple[LoadKind, ...] = ("open", "closed")
MODES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"stock": (), "layered": ("--prefill-mode", "layered")}
)
SEED = 1  # of bench_serving: its arrivals, and the shuffle of its data set
TIMEOUT_S = 600.0
ARRIVALS = "arrivals.csv"
LENGTHS: Mapping[str, Any] = MappingProxyType(
    {
        "prompt": {"distribution": "fixed", "tokens": 128},
        "output": {"distribution": "uniform", "min_tokens": 24, "max_tokens": 72},
    }
)


@dataclass(frozen=True, slots=True)
class Asked:
    """What to run: requests of one turn of a tool, clients of the closed loop, rate of the open one."""

    preset: str
    rounds: int
    num_requests: int
    num_clients: int
    rate_per_s: float

    def spec(self, mode: str, load: LoadKind, folder: Path) -> BenchSpec:
        """The spec; `folder` has the tokenizer and, once `write_arrivals` was called, the times."""
        return spec_from(
            {
                "run": {"name": f"crosscheck-{mode}-{load}", "timeout_s": TIMEOUT_S},
                "server": self._server(mode, folder),
                "load": self._load(load) | {"num_requests": self.num_requests},
                "workload": {"inputs": "text", "lengths": dict(LENGTHS)},
            },
            folder,
        )

    def write_arrivals(self, folder: Path) -> None:
        """Write when the open loop's requests are due."""
        times = "".join(f"{each!r}\n" for each in open_times_s(self.num_requests, self.rate_per_s))
        (folder / ARRIVALS).write_text("timestamp\n" + times)

    def _server(self, mode: str, folder: Path) -> dict[str, Any]:
        threads = max((os.cpu_count() or 1) - 1, 1)  # a core is left to HTTP and to the client
        flags = ["--tokenizer-path", str(tokenizer_folder(folder)), "--stream-interval", "1"]
        flags += ["--disable-radix-cache", "--max-total-tokens", "16384", "--max-running-requests", "16"]
        return {
            "model": {"arch": "qwen3_moe", "preset": self.preset},
            "flags": [*flags, *MODES[mode]],
            "env": {"OMP_NUM_THREADS": str(threads)},
        }

    def _load(self, load: LoadKind) -> dict[str, Any]:
        if load == "closed":
            return {"arrivals": "closed", "num_clients": self.num_clients}
        return {"arrivals": "trace", "trace": {"file": ARRIVALS}}


def tokenizer_folder(folder: Path) -> Path:
    """Where a mode's tokenizer is."""
    return folder / "tokenizer"


def open_times_s(num_requests: int, rate_per_s: float) -> list[float]:
    """When `sglang.bench_serving --seed SEED --request-rate rate_per_s` sends: the first one at 0."""
    gaps_s = np.random.RandomState(SEED).exponential(1.0 / rate_per_s, max(num_requests - 1, 0))
    return [0.0, *np.cumsum(gaps_s).tolist()]
