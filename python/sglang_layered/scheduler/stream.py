"""What the loop tells whoever listens inside the scheduler: metrics, spans, listeners, the step policy.

Events carry SGLang's live objects, so they are read at once and not kept; `core/events.py` has the values
that leave the scheduler.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sglang_layered.config import LayeredConfig
from sglang_layered.core.cohort import Cohort
from sglang_layered.core.events import DropReason
from sglang_layered.core.pacing import Decision
from sglang_layered.core.view import StepTiming
from sglang_layered.scheduler.batch import InFlightCohort
from sglang_layered.scheduler.results import LaunchedStep

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Admitted:
    """A cohort got its plan."""

    inflight: InFlightCohort


@dataclass(frozen=True, slots=True)
class Overtaken:
    """Short prompts, admitted next, go before this cohort, which waits at its group's edge."""

    inflight: InFlightCohort


@dataclass(frozen=True, slots=True)
class ResultsDue:
    """SGLang is about to process a step's results."""

    step: LaunchedStep


@dataclass(frozen=True, slots=True)
class StepDone:
    """SGLang has processed them."""

    step: LaunchedStep
    timing: StepTiming


@dataclass(frozen=True, slots=True)
class Left:
    """Requests left a cohort that goes on; `cohort` is as it was before."""

    cohort: Cohort
    reqs: Sequence[Any]


@dataclass(frozen=True, slots=True)
class Dropped:
    """A cohort left before its last group."""

    cohort: Cohort
    reason: DropReason


@dataclass(frozen=True, slots=True)
class SettingsChanged:
    """Other settings are in force; `has_other_mode` when prompts go another way from now on."""

    config: LayeredConfig
    reason: str
    has_other_mode: bool


@dataclass(frozen=True, slots=True)
class Paced:
    """A step policy chose the layers of the next step."""

    decision: Decision


@dataclass(frozen=True, slots=True)
class Answered:
    """A policy answered a question, within its bounds, and otherwise than before.

    The requests are those that may be admitted, in order (`order`), that are held for `seconds` (`hold`),
    that go before the cohort in flight (`preempt`), or that sit the next step out (`decode_rows`).
    """

    question: str
    request_ids: tuple[str, ...]
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Predicted:
    """A step policy heard how long a step took, and had predicted `predicted_s`."""

    kind: str
    predicted_s: float
    duration_s: float


Handlers = Mapping[type, Callable[[Any], None]]


class Subscriber(Protocol):
    """Hears the events whose types it names."""

    def handlers(self) -> Handlers:
        """What to call with an event of each type."""
        ...


class EventStream:
    """Calls the subscribers of each event, in the order in which they were added.

    One that fails is left out from then on: a server that measures less goes on serving. What a vital one
    raises passes, because the loop decides by what it says.
    """

    def __init__(self) -> None:
        self._by_type: dict[type, tuple[tuple[Subscriber, Callable[[Any], None]], ...]] = {}
        self._vital: list[Subscriber] = []

    def add(self, subscriber: Subscriber, is_vital: bool = False) -> None:
        """Let it hear from now on."""
        if is_vital:
            self._vital.append(subscriber)
        for kind, handle in subscriber.handlers().items():
            self._by_type[kind] = (*self._by_type.get(kind, ()), (subscriber, handle))

    def emit(self, event: Any) -> None:
        """Tell those who hear events of this type."""
        for subscriber, handle in self._by_type.get(type(event), ()):
            try:
                handle(event)
            except Exception:
                if subscriber in self._vital:
                    raise
                logger.exception("%s failed and hears no more", type(subscriber).__name__)
                self.remove(subscriber)

    def remove(self, subscriber: Subscriber) -> None:
        """Let it hear no more."""
        self._vital = [kept for kept in self._vital if kept is not subscriber]
        for kind, entries in self._by_type.items():
            self._by_type[kind] = tuple(entry for entry in entries if entry[0] is not subscriber)
