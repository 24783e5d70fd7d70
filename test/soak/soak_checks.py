"""What a soak must show: right tokens, none late, no leak, flat memory, and that the hard cases happened."""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from soak_asks import AbortAll, Outcome, abort_read_s
from soak_desk import MemorySample, Played
from soak_replay import Expected, Prompt

MEMORY_MARGIN = 0.05  # of the second quarter's median
RETRACTED = "KV cache pool is full. Retract requests"
DROPPED = re.compile(r"dropped at group \d+ of \d+: (.+)$")
BAD_LINES = re.compile(
    r"Traceback|hit an exception|memory leak|Mem Leak|double free|use-after-free"
    r"|Layered prefill is off|aborted last request"
)


@dataclass(frozen=True, slots=True)
class MemoryVerdict:
    """Resident memory of the scheduler; quarters are of the samples, the first one is the warm-up."""

    start_mib: float
    end_mib: float
    second_quarter_mib: float
    last_quarter_mib: float
    slope_mib_per_1000_requests: float  # least squares over all but the first quarter

    @property
    def is_flat(self) -> bool:
        """The last quarter is at most `MEMORY_MARGIN` above the second."""
        return self.last_quarter_mib <= self.second_quarter_mib * (1 + MEMORY_MARGIN)


def wrong_answers(
    outcomes: Sequence[Outcome], expected: Mapping[Prompt, Expected], abort_alls: list[AbortAll] | None = None
) -> list[str]:
    """One line for each request that got other tokens than the quiet server gave, too few, or late ones."""
    wrong = []
    for outcome in outcomes:
        ask, quiet = outcome.ask, expected[outcome.ask.prompt]
        is_whole = outcome.ending == "length" and len(outcome.tokens) == ask.num_outputs
        is_aborted = outcome.ending == "abort" and abort_read_s(outcome, abort_alls or []) is not None
        given_up = is_aborted or (outcome.ending == "hung up" and ask.abort is not None)
        what = f"request {ask.rid} ({len(ask.prompt)} tokens, {ask.num_outputs} outputs, {ask.abort})"
        if outcome.num_late_events:
            wrong.append(f"{what}: late answer, {outcome.num_late_events} events after {outcome.ending!r}")
        elif not quiet.allows(outcome.tokens):
            right = list(quiet.tokens[: len(outcome.tokens)])
            wrong.append(f"{what}: tokens {outcome.tokens} instead of {right}")
        elif len(outcome.tokens) > ask.num_outputs or not (is_whole or given_up):
            wrong.append(f"{what}: ended with {outcome.ending!r} after {len(outcome.tokens)} tokens")
    return wrong


def memory_verdict(samples: Sequence[MemorySample]) -> MemoryVerdict:
    """Judge the samples of a run."""
    mib = [sample.rss_bytes / 2**20 for sample in samples]
    quarter = max(len(mib) // 4, 1)
    thousands = [sample.requests / 1000 for sample in samples]
    slope = 0.0
    if len(set(thousands[quarter:])) > 1:
        slope = statistics.linear_regression(thousands[quarter:], mib[quarter:]).slope
    second, last = mib[quarter : 2 * quarter] or mib, mib[-quarter:]
    return MemoryVerdict(mib[0], mib[-1], statistics.median(second), statistics.median(last), slope)


def read_log(path: Path) -> tuple[Counter[str], list[str]]:
    """How often the hard cases happened, and the lines that must not be there."""
    counts: Counter[str] = Counter(retractions=0)
    bad: list[str] = []
    with path.open(errors="replace") as lines:
        for line in lines:
            counts["retractions"] += RETRACTED in line
            if dropped := DROPPED.search(line):
                counts[f"cohorts dropped: {dropped[1]}"] += 1
            if BAD_LINES.search(line):
                bad.append(f"server log: {line.strip()[:300]}")
    return counts, bad


def too_gentle(counts: Counter[str]) -> list[str]:
    """One line for each hard case that never happened."""
    found = []
    if not counts["retractions"]:
        found.append("no running request was ever retracted: the soak is too gentle")
    if not any(name.startswith("cohorts dropped") for name in counts):
        found.append("no cohort was ever dropped: the soak is too gentle")
    return found


def all_violations(
    played: Played,
    expected: Mapping[Prompt, Expected],
    memory: MemoryVerdict,
    bad_lines: list[str],
    late: list[str],
) -> list[str]:
    """Everything that is not as it must be; empty when the soak holds."""
    found = wrong_answers(played.outcomes, expected, played.abort_alls) + late + bad_lines
    if not memory.is_flat:
        found.append(
            f"memory grows: median {memory.second_quarter_mib:.0f} MiB in the second quarter,"
            f" {memory.last_quarter_mib:.0f} MiB in the last"
        )
    return found
