"""What the paper (arXiv 2510.08055) states as a ratio of two ways to serve, and where we measure it.

Its numbers as they were read from its tables and figures; a figure marked "read off" was taken from a picture
and is good to about 2 %.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from sglang_layered_lab.bench.ratios import Ratio, ratio
from sglang_layered_lab.bench.sweep_result import SweepResult
from sglang_layered_lab.paper.capacity import joules_at_top_rate


@dataclass(frozen=True, slots=True)
class Names:
    """What a profile calls the arms that stand for the paper's, and the point that its table is of."""

    chunk: str  # for its chunks of 512
    large_chunk: str  # four times that
    few_groups: str
    many_groups: str
    dense_chunk: str
    dense_layered: str
    point: Mapping[str, Any]


NAMES: Mapping[str, Names] = MappingProxyType(
    {
        "cpu": Names(
            chunk="mixed-64",
            large_chunk="mixed-256",
            few_groups="layered-2",
            many_groups="layered-8",
            dense_chunk="mixed-256",
            dense_layered="layered-8",
            point={"workload.lengths.prompt.tokens": 1024, "load.background.num_streams": 4},
        ),
        "h200": Names(
            chunk="mixed-512",
            large_chunk="mixed-2048",
            few_groups="layered-2",
            many_groups="layered-16",
            dense_chunk="mixed-512",
            dense_layered="layered-16",
            point={"load.background.num_streams": 16},
        ),
    }
)


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
            why = f"nothing in the records of study {self.study} tells"
            return Row(self.where, self.what, self.paper_text, "not measured", why)
        text = found.as_change() if self.shown == "change" else found.as_times()
        return Row(self.where, self.what, self.paper_text, text, self._why(found))

    def _why(self, found: Ratio) -> str:
        if not (found.is_below or found.is_above):
            if found.interval is not None and found.interval.low <= self.paper <= found.interval.high:
                return (
                    "Undecided: the interval holds the paper's ratio and no change. More rounds would tell."
                )
            return f"Undecided: the interval holds no change, and not the paper's ratio. {self.differ}"
        return self.agree if found.is_below == (self.paper < 1) else f"The other direction. {self.differ}"


BANDWIDTH = (
    "A GPU's 512-token chunk is bound by the bytes of experts; on a CPU core arithmetic and calls cost more,"
    " so reading experts again costs less."
)
ROUTING = "Random weights route nearly uniformly, so decode steps read more of the experts than in the paper."
STEPS = "A layered prompt makes more steps, and a step has a cost of its own."
QUEUE = (
    "One rate on one machine, not 1.3 requests/s on two H100. Where small chunks attain little (see the"
    " study), the rate is beyond their capacity, and their queue is most of the difference."
)
MINUS = "\N{MINUS SIGN}"


def claims(names: Names) -> Iterator[Claim]:
    """All claims, in the paper's order."""
    yield from _chunks(names)
    yield from _serving(names)
    yield from _groups(names)
    yield Claim(
        "dense Qwen3-8B",
        f"TTFT, {names.dense_layered} over {names.dense_chunk}",
        "+52 % (0.955 to 1.45 s): layered loses",
        1.52,
        "dense",
        "ttft_mean",
        names.dense_layered,
        names.dense_chunk,
        "There are no experts to save: layers only add steps.",
        "Chunks are dear on a CPU (see *Scale on paper*), so layered does not lose here.",
    )


def _chunks(names: Names) -> Iterator[Claim]:
    alone = ("alone", names.chunk, "whole")
    for what, text, paper, scalar, agree, differ in (
        (
            "expert bytes of one prompt",
            "13.4 times (764 v 57 GB, chunk 512 v 8192)",
            764 / 57,
            "expert_bytes",
            "The same law: the number of chunks times the coverage of a chunk; 16 chunks here as there.",
            ROUTING,
        ),
        (
            "run time of one prompt",
            "2.67 times (559 v 209 ms)",
            559 / 209,
            "ttft_mean",
            f"{BANDWIDTH} SGLang's attention on a CPU adds to it (see *Scale on paper*).",
            BANDWIDTH,
        ),
    ):
        study, arm, whole = alone
        yield Claim(
            "Fig. 2 (read off)",
            f"{what}, {arm} over whole",
            text,
            paper,
            study,
            scalar,
            arm,
            whole,
            agree,
            differ,
            "times",
        )
    yield Claim(
        "Table 2",
        f"p99 TBT, {names.large_chunk} over {names.chunk}",
        "2.67 times (129 v 48 ms, chunk 2048 v 512)",
        129 / 48.4,
        "beside",
        "beside_p99",
        names.large_chunk,
        names.chunk,
        "A larger chunk takes longer, less than in proportion: the experts are read in both.",
        "On a CPU a small chunk pays for attention over the whole prompt as a large one does.",
        "times",
        names.point,
    )


def _serving(names: Names) -> Iterator[Claim]:
    for what, text, paper, scalar, agree, differ in (
        ("mean TTFT", f"{MINUS}56 % (2.80 to 1.24 s)", 0.44, "ttft_mean", QUEUE, f"{STEPS} {QUEUE}"),
        ("p99 TTFT", f"{MINUS}53 % (8.65 to 4.10 s)", 0.47, "ttft_p99", QUEUE, f"{STEPS} {QUEUE}"),
        ("mean TBT", f"{MINUS}35 %", 0.65, "tbt_mean", BANDWIDTH, STEPS),
        ("p99 TBT", f"{MINUS}27 %", 0.73, "tbt_p99", BANDWIDTH, STEPS),
        ("E2E", f"{MINUS}41 % (9.4 to 5.5 s, one request)", 0.59, "e2e_mean", QUEUE, STEPS),
        ("expert bytes a request", f"{MINUS}39 %", 0.61, "expert_bytes", ROUTING, ROUTING),
    ):
        title = f"{what}, layered over {names.chunk}"
        yield Claim(
            "arXiv, 1.3 requests/s",
            title,
            text,
            paper,
            "arxiv",
            scalar,
            "layered",
            names.chunk,
            agree,
            differ,
        )
    for study, routers in (("calibrated", "calibrated routers"), ("sharegpt", "ShareGPT")):
        is_short = study == "sharegpt"
        yield Claim(
            routers if is_short else f"arXiv, {routers}",
            f"expert bytes a request, layered over {names.chunk}",
            f"{MINUS}12 %" if is_short else f"{MINUS}39 %",
            0.88 if is_short else 0.61,
            study,
            "expert_bytes",
            "layered",
            names.chunk,
            "Prompts are short, so there is less to save than with arXiv, there and here."
            if is_short
            else "Routers touch what the paper's table says; lengths and rate are scaled.",
            ROUTING,
        )
    yield Claim(
        "energy at one rate",
        f"J a token, layered over {names.chunk}",
        f"{MINUS}8 to {MINUS}9 % ({MINUS}22 % each at its own top rate)",
        0.915,
        "arxiv",
        "joules_total",
        "layered",
        names.chunk,
        "Fewer bytes are read.",
        STEPS,
    )


def _groups(names: Names) -> Iterator[Claim]:
    for what, text, paper, scalar, agree, differ in (
        (
            "p99 TBT",
            "3.9 times (138 ms at G=2, 36 ms at G=16)",
            138 / 35.7,
            "beside_p99",
            "Worst TBT is P/G + D: with more groups the decode step D counts for more.",
            STEPS,
        ),
        (
            "TTFT",
            "below 1 (lowest at G=2)",
            0.9,
            "ttft_mean",
            "TTFT is P + G D: every group adds a decode step.",
            "P + G D says the opposite; look at the raw data.",
        ),
    ):
        title = f"{what}, {names.few_groups} over {names.many_groups}"
        yield Claim(
            "Table 11",
            title,
            text,
            paper,
            "beside",
            scalar,
            names.few_groups,
            names.many_groups,
            agree,
            differ,
            "times",
            names.point,
        )


def rows(sweeps: Mapping[str, SweepResult], profile: str) -> Iterator[Row]:
    """All claims with what was measured."""
    for claim in claims(NAMES[profile]):
        yield claim.row(sweeps)
    yield _energy_at_top_rates(sweeps.get("rates-arxiv"), NAMES[profile])


def _energy_at_top_rates(sweep: SweepResult | None, names: Names) -> Row:
    joules = [joules_at_top_rate(sweep, arm) if sweep else None for arm in ("layered", names.chunk)]
    where, what = "energy, each at its own top rate", f"J a token, layered over {names.chunk}"
    paper = f"{MINUS}22 % (Qwen), {MINUS}20 % (GPT)"
    if joules[0] is None or joules[1] is None:
        return Row(where, what, paper, "not measured", "no joules at a rate with 90 % attainment")
    found = Ratio(joules[0] / joules[1], None)
    return Row(where, what, paper, found.as_change(), "Two different rates, as in the paper; one round.")
