"""The research interface: write a policy or a listener against what this module exports.

A policy is chosen by `--layered-policy NAME` (an entry point of group `sglang_layered.policies`) or
`module:Class`; a listener by `--layered-listeners NAME=ARGUMENT` (group `sglang_layered.listeners`) or
`module:Class=ARGUMENT`. examples/ has one of each; docs/research.md says what is promised.
"""

from sglang_layered.core.capability import Capability
from sglang_layered.core.events import (
    CohortAdmitted,
    CohortDropped,
    CohortFinished,
    DropReason,
    Event,
    GroupDone,
    ModeChanged,
    RequestsLeft,
    ServingStarted,
    StepDone,
)
from sglang_layered.core.layer_shape import LayerShape
from sglang_layered.core.pacing import (
    Decision,
    DeviceRates,
    ModelSizes,
    Option,
    PaceView,
    QueueView,
    Start,
    StepLoad,
    StepPolicy,
)
from sglang_layered.core.plan import LayerGroup, LayerGroupPlan
from sglang_layered.core.policy import GroupPolicy
from sglang_layered.core.view import SchedulerView, StepTiming
from sglang_layered.errors import ConfigError
from sglang_layered.listeners.dispatch import Listener

__all__ = [
    "Capability",
    "CohortAdmitted",
    "CohortDropped",
    "CohortFinished",
    "ConfigError",
    "Decision",
    "DeviceRates",
    "DropReason",
    "Event",
    "GroupDone",
    "GroupPolicy",
    "LayerGroup",
    "LayerGroupPlan",
    "LayerShape",
    "Listener",
    "ModeChanged",
    "ModelSizes",
    "Option",
    "PaceView",
    "QueueView",
    "RequestsLeft",
    "SchedulerView",
    "ServingStarted",
    "Start",
    "StepDone",
    "StepLoad",
    "StepPolicy",
    "StepTiming",
]
