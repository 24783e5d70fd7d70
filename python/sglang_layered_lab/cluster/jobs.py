"""Requests of a simulation, drawn once for a load: every arm serves the same."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from math import inf
from pathlib import Path

import numpy as np

from sglang_layered.core.questions import SloClass
from sglang_layered_lab.bench.arrivals import arrival_times, measuring_window, read_timestamps
from sglang_layered_lab.bench.lengths import LengthSource, load_lengths
from sglang_layered_lab.bench.spec import SloSpec
from sglang_layered_lab.bench.spec_seeds import Stream, generator
from sglang_layered_lab.bench.workload import size_of
from sglang_layered_lab.cluster.spec import CellSpec, ClassSpec

OWN_CLASS = 1_000  # among a stream's indices: which class a request is of


@dataclass(slots=True)
class Job:
    """A request on its way: what it asks for, what it has, when its tokens came. Seconds on one clock."""

    index: int
    kind: str  # its class
    arrived_s: float
    prompt_tokens: int
    output_tokens: int
    slo: SloClass
    priority: int = 0
    is_measured: bool = True
    done_tokens: int = 0  # of the prompt, computed in earlier cohorts
    passed: int = 0  # times that it was left out, or others were admitted before it
    left: int = 0  # tokens still to compute
    context: int = 0  # tokens that its row sees
    sat_out: int = 0  # decode steps in a row that it was left out of
    ready_s: float = 0.0  # when its prompt was done
    num_heard: int = 0  # tokens handed out
    first_s: float = -1.0  # -1: no token yet
    last_s: float = -1.0
    worst_gap_s: float = 0.0
    line_s: float = inf  # when the latest token was due by its deadline line
    behind_s: float = -inf  # of that line, at worst

    @property
    def to_compute(self) -> int:
        """Prompt tokens that no cohort has had yet."""
        return self.prompt_tokens - self.done_tokens

    def hear(self, now_s: float) -> None:
        """One token more is handed out."""
        if self.num_heard:
            gap_s = now_s - self.last_s
            if gap_s > self.worst_gap_s:
                self.worst_gap_s = gap_s
            self.line_s += self.slo.tbt_s
        else:
            self.first_s = now_s
            self.line_s = self.arrived_s + self.slo.ttft_s
        if now_s - self.line_s > self.behind_s:
            self.behind_s = now_s - self.line_s
        self.last_s = now_s
        self.num_heard += 1


def jobs_of(cell: CellSpec, folder: Path, seed: int, repetition: int) -> list[Job]:
    """The requests of one round, in the order in which they come.

    Raises:
        SpecError: a file is bad, or nothing would be measured.
    """
    stamps = read_timestamps(cell.load.trace, folder) if cell.load.trace else ()
    times_s = arrival_times(cell.load, seed, repetition=repetition, timestamps=stamps)
    start_s, end_s = measuring_window(cell.load, times_s)
    kinds = _kinds(cell, folder)
    shares = np.cumsum([kind.share for kind, _ in kinds])
    jobs = []
    for index, time_s in enumerate(times_s):
        dice = generator(seed, Stream.LENGTHS, repetition, index, OWN_CLASS)
        kind, lengths = kinds[min(int(np.searchsorted(shares, dice.random())), len(kinds) - 1)]
        size = size_of(lengths, seed, repetition, index)
        limits = _limits(kind.slo, cell.slo)
        job = partial(Job, slo=limits, priority=kind.priority, is_measured=start_s <= time_s < end_s)
        jobs.append(job(index, kind.name, time_s, size.prompt_tokens, size.output_tokens))
    return jobs


def _kinds(cell: CellSpec, folder: Path) -> list[tuple[ClassSpec, LengthSource]]:
    common = load_lengths(cell.workload.lengths, folder)
    kinds = cell.classes or (ClassSpec(name="all", share=1.0),)
    return [(kind, load_lengths(kind.lengths, folder) if kind.lengths else common) for kind in kinds]


def _limits(own: SloSpec, common: SloSpec) -> SloClass:
    def seconds() -> Iterator[float]:
        for name in ("ttft_ms", "tbt_ms"):
            limit_ms = getattr(common, name) if getattr(own, name) is None else getattr(own, name)
            yield inf if limit_ms is None else limit_ms / 1e3

    return SloClass(*seconds())
