"""What a simulated run amounts to, for the requests that are measured. Pure; docs/cluster.md defines it."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf

import numpy as np

from sglang_layered_lab.bench.metrics import Distribution
from sglang_layered_lab.cluster.jobs import Job
from sglang_layered_lab.cluster.run import Outcome


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one class of requests, over all rounds. Seconds; attainments are parts of its requests.

    `attained`: the first token within its limit, and every gap. `on_line`: every token by the time arrival +
    TTFT limit + j x TBT limit, which lets a request use what it was early. None without the limits.
    """

    kind: str
    num_requests: int
    num_unfinished: int
    ttft: Distribution
    worst_gap: Distribution | None
    tpot: Distribution | None
    attained: float | None
    in_time: float | None  # the first token within its limit
    steady: float | None  # every gap within its limit
    on_line: float | None


@dataclass(frozen=True, slots=True)
class CellFigures:
    """Of one cell: classes, then `all`; gaps and loads are those of all its replicas."""

    kinds: tuple[Figures, ...]
    gap_p50_s: float | None
    gap_p99_s: float | None
    output_tokens_per_s: float
    busy: float  # part of the time in which a replica computes
    num_steps: int

    @property
    def all(self) -> Figures:
        """Of all classes together."""
        return self.kinds[-1]


def figures_of(outcomes: Sequence[Outcome]) -> CellFigures:
    """Of one cell's rounds."""
    jobs = [job for each in outcomes for job in each.jobs if job.is_measured]
    names = list(dict.fromkeys(sorted(job.kind for job in jobs)))
    kinds = [_of_kind(name, [job for job in jobs if job.kind == name]) for name in names]
    tallies = [tally for each in outcomes for tally in each.tallies]
    gaps: Counter[float] = sum((tally.gaps for tally in tallies), Counter())
    spent_s = sum(each.end_s * len(each.tallies) for each in outcomes)
    return CellFigures(
        (*kinds, *([] if names == ["all"] else [_of_kind("all", jobs)])),
        _quantile(gaps, 0.5),
        _quantile(gaps, 0.99),
        sum(job.num_heard for each in outcomes for job in each.jobs) / sum(each.end_s for each in outcomes),
        sum(each.busy_s for each in tallies) / spent_s,
        sum(each.num_steps for each in tallies),
    )


def _of_kind(name: str, jobs: Sequence[Job]) -> Figures:
    served = [job for job in jobs if job.num_heard == job.output_tokens]
    ttft = Distribution.of([job.first_s - job.arrived_s for job in served])
    assert ttft is not None, "a simulation serves every request"
    several = [job for job in served if job.num_heard > 1]
    marks = [list(_marks(job)) for job in served]
    columns = [_share(column) for column in zip(*marks, strict=True)]
    return Figures(
        name, len(jobs), len(jobs) - len(served), ttft,
        Distribution.of([job.worst_gap_s for job in several]),
        Distribution.of([(job.last_s - job.first_s) / (job.num_heard - 1) for job in several]),
        *columns,
    )  # fmt: skip


def _marks(job: Job) -> Iterator[bool | None]:
    """Attained, in time, steady, on the line; None where there is no limit."""
    ttft_s, tbt_s = job.slo
    in_time = job.first_s - job.arrived_s <= ttft_s if ttft_s < inf else None
    steady = job.worst_gap_s <= tbt_s if tbt_s < inf else None
    yield None if in_time is None and steady is None else in_time is not False and steady is not False
    yield in_time
    yield steady
    yield None if in_time is None or steady is None else job.behind_s <= 0


def _share(marks: Sequence[bool | None]) -> float | None:
    known = [each for each in marks if each is not None]
    return float(np.mean(known)) if known else None


def _quantile(gaps: Counter[float], part: float) -> float | None:
    """Of gaps that are counted by their length."""
    if not gaps:
        return None
    lengths = np.array(sorted(gaps))
    counted = np.cumsum([gaps[each] for each in lengths.tolist()])
    return float(lengths[np.searchsorted(counted, part * counted[-1])])
