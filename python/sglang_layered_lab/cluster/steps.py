"""How long the steps of a replica take: fitted to a recorded trace, or a device's least. One interface."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Protocol, cast

from sglang_layered.core.capability import Capability, capabilities_of
from sglang_layered.core.pacing import DeviceRates, ModelSizes, Start, StepLoad, StepPolicy
from sglang_layered.core.policy import GroupPolicy
from sglang_layered_lab.cluster.spec import StepsSpec
from sglang_layered_lab.cost.coverage import COVERAGES
from sglang_layered_lab.cost.roofline import DEVICES, Roofline
from sglang_layered_lab.cost.sizes import named, sizes_of
from sglang_layered_lab.traces.run_model import RunModel, ready_policy
from sglang_layered_lab.traces.trace import Trace, read_trace

LESSONS = (1, 4, 16, 64, 256)  # decode rows of the steps that a policy is taught before a simulation
LESSON_TOKENS = (256, 1024, 4096, 8192)
CONTEXT_TOKENS = 2048


class Steps(Protocol):
    """What a replica asks: seconds of a step, seconds between two, steps that a token waits to be heard."""

    @property
    def sizes(self) -> ModelSizes:
        """Of the model that is served."""

    @property
    def between_s(self) -> float:
        """What passes between two steps."""

    @property
    def delay_steps(self) -> int:
        """Steps that a token waits for, with SGLang's overlap scheduler one."""

    @property
    def idle_rows(self) -> int:
        """Steps that a request decodes in after its last token: they are launched before that is known."""

    @property
    def is_apart(self) -> bool:
        """True when prompt and decode rows run in a forward each."""

    def step_s(self, load: StepLoad) -> float:
        """Seconds of a step."""

    def taught(self, policy: GroupPolicy) -> GroupPolicy:
        """A copy of the policy that knows what steps take, as after a long time of serving."""


@dataclass(frozen=True, slots=True)
class RecordedSteps:
    """As in a trace."""

    model: RunModel
    trace: Trace

    @property
    def sizes(self) -> ModelSizes:
        """Of the model that the trace's server had."""
        return self.model.sizes

    @property
    def between_s(self) -> float:
        """The trace's median."""
        return self.model.between_s

    @property
    def delay_steps(self) -> int:
        """As most tokens of the trace."""
        return self.model.delay_steps

    @property
    def idle_rows(self) -> int:
        """One with the overlap scheduler."""
        return self.model.delay_steps

    @property
    def is_apart(self) -> bool:
        """As most layered steps of the trace."""
        return self.model.is_apart

    def step_s(self, load: StepLoad) -> float:
        """By the fit."""
        return self.model.step_s(load)

    def taught(self, policy: GroupPolicy) -> GroupPolicy:
        """By the trace's steps."""
        return ready_policy(deepcopy(policy), self.model, self.trace)


@dataclass(frozen=True)
class LeastSteps:
    """The least that a device can do, and the host's time between steps."""

    roofline: Roofline
    between_s: float
    delay_steps: int = 1
    idle_rows: int = 1
    is_apart: bool = False

    @cached_property
    def sizes(self) -> ModelSizes:
        """Of the named model."""
        return sizes_of(self.roofline.shape)

    def step_s(self, load: StepLoad) -> float:
        """By the roofline."""
        return self.roofline.step_s(load)

    def taught(self, policy: GroupPolicy) -> GroupPolicy:
        """By steps of all sizes."""
        made, can = deepcopy(policy), capabilities_of(policy)
        if not can & {Capability.LEARNS, Capability.PACES_STEPS}:
            return made
        on_steps, device = cast("StepPolicy", made), self.roofline.device
        layers = (self.roofline.layer,) * self.sizes.num_layers
        rates = DeviceRates(1 / device.bytes_per_s, 1 / device.flop_per_s, 1e-6)
        on_steps.begin(self.sizes, layers, Start(rates))
        if Capability.LEARNS in can:
            for load in _lessons(self.sizes.num_layers):
                on_steps.observe(load, self.step_s(load))
        return made


def _lessons(num_layers: int) -> Sequence[StepLoad]:
    decodes = [StepLoad(rows, rows * CONTEXT_TOKENS) for rows in LESSONS]
    prompts = [(tokens,) for tokens in LESSON_TOKENS]
    beside = [
        replace(each, prompt_lens=lens, prefix_lens=(0,), prompt_layers=float(layers))
        for each in (StepLoad(), *decodes)
        for lens in prompts
        for layers in (max(num_layers // 16, 1), max(num_layers // 4, 1), num_layers)
    ]
    return [*decodes, *decodes, *beside, *beside]


def steps_of(spec: StepsSpec, folder: Path) -> Steps:
    """What a spec names.

    Raises:
        BenchError: the trace is none, or cannot be read.
        ConfigError: the model is unknown.
    """
    if spec.trace is not None:
        trace = read_trace(folder / spec.trace)
        return RecordedSteps(RunModel.of(trace.steps, trace.sizes), trace)
    shape, coverage = named(spec.model), cache(COVERAGES[spec.coverage])
    assert spec.device is not None
    return LeastSteps(Roofline(shape, coverage, DEVICES[spec.device]), spec.host_ms / 1e3)
