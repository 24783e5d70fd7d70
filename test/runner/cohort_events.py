"""What listeners heard of cohorts: each that was admitted ends once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from sglang_layered.core.events import CohortAdmitted, CohortDropped, CohortFinished, Event, RequestsLeft


def open_cohorts(events: Sequence[Event]) -> Counter[tuple[str, ...]]:
    """Cohorts, by their requests, that were admitted and have not ended as the listeners heard it."""
    cohorts: Counter[tuple[str, ...]] = Counter()
    for event in events:
        match event:
            case CohortAdmitted():
                cohorts[tuple(event.prompt_rows)] += 1
            case RequestsLeft():
                cohorts[event.cohort_ids] -= 1
                cohorts[tuple(rid for rid in event.cohort_ids if rid not in event.request_ids)] += 1
            case CohortFinished() | CohortDropped():
                cohorts[event.request_ids] -= 1
    assert min(cohorts.values(), default=0) >= 0, cohorts
    return cohorts
