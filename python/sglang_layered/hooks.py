"""The research interface: write a policy or a listener against what this module exports.

A policy is chosen by `--layered-policy NAME` (an entry point of group `sglang_layered.policies`) or
`module:Class`; a listener by `--layered-listeners NAME=ARGUMENT` (group `sglang_layered.listeners`) or
`module:Class=ARGUMENT`. examples/ has one of each; docs/research.md says what is promised.
"""

# ruff: noqa: I001 - `X as X` exports X, in one list for each module
from sglang_layered.core.capability import Capability as Capability
from sglang_layered.core.events import (
    CohortAdmitted as CohortAdmitted,
    CohortDropped as CohortDropped,
    CohortFinished as CohortFinished,
    DropReason as DropReason,
    Event as Event,
    GroupDone as GroupDone,
    ModeChanged as ModeChanged,
    PolicyAnswered as PolicyAnswered,
    RequestsLeft as RequestsLeft,
    ServingStarted as ServingStarted,
    StepDone as StepDone,
)
from sglang_layered.core.layer_shape import LayerShape as LayerShape
from sglang_layered.core.pacing import (
    Decision as Decision,
    DeviceRates as DeviceRates,
    ModelSizes as ModelSizes,
    Option as Option,
    PaceView as PaceView,
    QueueView as QueueView,
    Start as Start,
    StepLoad as StepLoad,
    StepPolicy as StepPolicy,
)
from sglang_layered.core.plan import LayerGroup as LayerGroup, LayerGroupPlan as LayerGroupPlan
from sglang_layered.core.policy import GroupPolicy as GroupPolicy
from sglang_layered.core.questions import (
    Decode as Decode,
    Flying as Flying,
    Questions as Questions,
    Queue as Queue,
    Running as Running,
    SloClass as SloClass,
    Snapshot as Snapshot,
    Waiting as Waiting,
)
from sglang_layered.core.view import SchedulerView as SchedulerView, StepTiming as StepTiming
from sglang_layered.errors import ConfigError as ConfigError
from sglang_layered.listeners.dispatch import Listener as Listener
