"""What a listener hears: one frozen value an event, in the order things happened.

`step` is SGLang's forward counter; `time_s` and the like are `time.monotonic()` in seconds. Layer ranges are
half-open.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from sglang_layered.core.pacing import Decision, ModelSizes, StepLoad
from sglang_layered.core.plan import LayerGroup, LayerGroupPlan
from sglang_layered.core.view import StepKind


class DropReason(str, Enum):
    """Why requests leave a cohort before its last layer group, as logs, events and metrics show it."""

    ABORTED = "aborted"
    PAUSED = "paused"
    KV_POOL_FULL = "KV pool full"
    BROKEN_INVARIANT = "broken invariant"

    __str__ = str.__str__  # what log lines and Prometheus labels print


@dataclass(frozen=True, slots=True)
class _Moment:
    step: int
    time_s: float


@dataclass(frozen=True, slots=True)
class ServingStarted(_Moment):
    """The loop starts: what is served and how. `cohort_tokens` is None without --chunked-prefill-size."""

    policy: str
    cohort_tokens: int | None
    sizes: ModelSizes


@dataclass(frozen=True, slots=True)
class CohortAdmitted(_Moment):
    """A cohort got its KV slots and its plan. Rows are tokens to compute, prefixes come from the cache."""

    plan: LayerGroupPlan
    prompt_rows: Mapping[str, int]
    prefix_tokens: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class GroupDone(_Moment):
    """The cohort was computed in one more layer group."""

    group: LayerGroup
    group_index: int
    num_groups: int
    request_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StepDone(_Moment):
    """A step's results were processed.

    `start_s` is the launch, `duration_s` the forward's time on the device. `decode` maps each request that
    got a token to its number of output tokens, `prompt` each prompt's request to its rows; `group` is None
    and `strategy` (how the two kinds of rows ran: `--layered-execution`) are None unless the step is layered;
    a prefill step runs all layers. `num_decode_rows` also counts rows of requests that had just finished.
    `arrived_s` says when the scheduler received each prompt's request, `load` what the step ran in the terms
    of the step-time model, `decision` what a step policy thought; None with other policies.
    """

    kind: StepKind
    start_s: float
    duration_s: float
    num_decode_rows: int = 0
    num_prompt_rows: int = 0
    decode: Mapping[str, int] = field(default_factory=dict)
    prompt: Mapping[str, int] = field(default_factory=dict)
    group: LayerGroup | None = None
    group_index: int = 0
    num_groups: int = 1
    strategy: str | None = None
    arrived_s: Mapping[str, float] = field(default_factory=dict)
    load: StepLoad | None = None
    decision: Decision | None = None


@dataclass(frozen=True, slots=True)
class CohortFinished(_Moment):
    """A cohort passed its last group: its requests have their first tokens, or their next chunk to come."""

    request_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CohortDropped(_Moment):
    """A cohort left before its last group; `group_index` is the group it would have run next."""

    request_ids: tuple[str, ...]
    group_index: int
    reason: DropReason


@dataclass(frozen=True, slots=True)
class RequestsLeft(_Moment):
    """Requests left a cohort before its last group and the others go on.

    `request_ids` left; `cohort_ids` were in the cohort until then; `group_index` is the group it runs next.
    """

    request_ids: tuple[str, ...]
    cohort_ids: tuple[str, ...]
    group_index: int
    reason: DropReason


@dataclass(frozen=True, slots=True)
class PolicyAnswered(_Moment):
    """A policy answered a question, within its bounds, and otherwise than before.

    The requests are those that may be admitted, in order (`order`), that are held for `seconds` (`hold`),
    that go before the cohort in flight (`preempt`), or that sit the next step out (`decode_rows`).
    """

    question: str
    request_ids: tuple[str, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class ModeChanged(_Moment):
    """The server goes on in another mode: asked for by an operator, or after a broken invariant."""

    mode: str
    reason: str


Event = (
    ServingStarted
    | CohortAdmitted
    | GroupDone
    | StepDone
    | CohortFinished
    | CohortDropped
    | RequestsLeft
    | PolicyAnswered
    | ModeChanged
)
