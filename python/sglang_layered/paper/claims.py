"""What the paper (arXiv 2510.08055) states as a ratio of two ways to serve, and where we measure it.

Its numbers as they were read from its tables and figures; a figure marked "read off" was taken from a picture
and is good to about 2 %.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from sglang_layered.bench.sweep_result import SweepResult
from sglang_layered.paper.ratios import Ratio, ratio


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the report: where the paper says it, what, its number, ours, and why they differ."""

    where: str
    what: str
    paper: str
    ours: str
    why: str


@dataclass(frozen=True, slots=True)
class Claim:
    """`arm` over `baseline` in a scalar of a study. `paper` is the paper's ratio.

    `agree` explains the size of a difference in the same direction, `differ` one in the other direction.
    """

    where: str
    what: str
    paper_text: str
    paper: float
    study: str
    scalar: str
    arm: str
    baseline: str
    agree: str
    differ: str
    shown: Literal["change", "times"] = "change"
    point: Mapping[str, Any] = field(default_factory=dict)

    def row(self, sweeps: Mapping[str, SweepResult]) -> Row:
        """Compare with what was measured."""
        sweep = sweeps.get(self.study)
        found = ratio(sweep, self.scalar, self.arm, self.baseline, self.point) if sweep else None
        if found is None:
            return Row(self.where, self.what, self.paper_text, "not measured", f"study {self.study} lacks it")
        text = found.as_change() if self.shown == "change" else found.as_times()
        return Row(self.where, self.what, self.paper_text, text, self._why(found))

    def _why(self, found: Ratio) -> str:
        if not (found.is_below or found.is_above):
            return f"Undecided here: the interval contains no change. {self.differ}"
        return self.agree if found.is_below == (self.paper < 1) else f"The other direction. {self.differ}"


BANDWIDTH = (
    "A GPU's 512-token chunk is bound by the bytes of experts; on a CPU core arithmetic and calls cost more,"
    " so reading experts again costs less."
)
ROUTING = "Random weights route nearly uniformly, so decode steps read more of the experts than in the paper."
STEPS = "A step has 10 to 20 ms of its own on this CPU, and layered prefill makes more steps."
QUEUE = "The load is one rate on one small machine, not 1.3 requests/s on two H100."

CHUNKS = (
    Claim(
        "Fig. 2 (read off)",
        "expert bytes of one prompt, smallest chunk over whole",
        "13.4 times (764 v 57 GB, chunk 512 v 8192)",
        764 / 57,
        "alone",
        "expert_bytes",
        "mixed-64",
        "whole",
        "The same law: the number of chunks times the coverage of a chunk; 16 chunks here as there.",
        ROUTING,
        "times",
    ),
    Claim(
        "Fig. 2 (read off)",
        "run time of one prompt, smallest chunk over whole",
        "2.67 times (559 v 209 ms)",
        559 / 209,
        "alone",
        "ttft_mean",
        "mixed-64",
        "whole",
        BANDWIDTH,
        BANDWIDTH,
        "times",
    ),
    Claim(
        "Table 2",
        "p99 TBT, chunk of 4 times the size",
        "2.67 times (129 v 48 ms, chunk 2048 v 512)",
        129 / 48.4,
        "beside",
        "beside_p99",
        "mixed-256",
        "mixed-64",
        "A larger chunk takes longer, less than in proportion: the experts are read in both.",
        STEPS,
        "times",
        {"workload.lengths.prompt.tokens": 1024, "load.background.num_streams": 4},
    ),
)


def _serving(what: str, text: str, paper: float, scalar: str, agree: str, differ: str) -> Claim:
    return Claim(
        "arXiv, 1.3 requests/s", what, text, paper, "arxiv", scalar, "layered", "mixed-64", agree, differ
    )


SERVING = (
    _serving(
        "mean TTFT", "\N{MINUS SIGN}56 % (2.80 to 1.24 s)", 0.44, "ttft_mean", QUEUE, f"{STEPS} {QUEUE}"
    ),
    _serving("p99 TTFT", "\N{MINUS SIGN}53 % (8.65 to 4.10 s)", 0.47, "ttft_p99", QUEUE, f"{STEPS} {QUEUE}"),
    _serving("mean TBT", "\N{MINUS SIGN}35 %", 0.65, "tbt_mean", BANDWIDTH, STEPS),
    _serving("p99 TBT", "\N{MINUS SIGN}27 %", 0.73, "tbt_p99", BANDWIDTH, STEPS),
    _serving(
        "E2E of a request", "\N{MINUS SIGN}41 % (9.4 to 5.5 s, one request)", 0.59, "e2e_mean", QUEUE, STEPS
    ),
    _serving("expert bytes a request", "\N{MINUS SIGN}39 %", 0.61, "expert_bytes", ROUTING, ROUTING),
    Claim(
        "ShareGPT",
        "expert bytes a request",
        "\N{MINUS SIGN}12 %",
        0.88,
        "sharegpt",
        "expert_bytes",
        "layered",
        "mixed-64",
        "Prompts are short, so there is less to save than with arXiv, there and here.",
        ROUTING,
    ),
)

POINT = {"workload.lengths.prompt.tokens": 1024, "load.background.num_streams": 4}
GROUPS = (
    Claim(
        "Table 11",
        "p99 TBT, few groups over many",
        "3.9 times (138 ms at G=2, 36 ms at G=16)",
        138 / 35.7,
        "beside",
        "beside_p99",
        "layered-2",
        "layered-8",
        "Worst TBT is P/G + D: 4 times the groups, less than a quarter of the TBT where D counts.",
        STEPS,
        "times",
        POINT,
    ),
    Claim(
        "Table 11",
        "TTFT, few groups over many",
        "below 1 (lowest at G=2)",
        0.9,
        "beside",
        "ttft_mean",
        "layered-2",
        "layered-8",
        "TTFT is P + G D: every group adds a decode step.",
        "P + G D says the opposite; look at the raw data.",
        "times",
        POINT,
    ),
)
DENSE = (
    Claim(
        "dense Qwen3-8B",
        "TTFT against chunks",
        "+52 % (0.955 to 1.45 s): layered loses",
        1.52,
        "dense",
        "ttft_mean",
        "layered-8",
        "mixed-256",
        "There are no experts to save: layers only add steps.",
        "Chunks are dear on a CPU (each is many small calls), so layered does not lose here.",
    ),
)


def rows(sweeps: Mapping[str, SweepResult]) -> Iterator[Row]:
    """All claims, in the paper's order."""
    for claim in (*CHUNKS, *SERVING, *GROUPS, *DENSE):
        yield claim.row(sweeps)
