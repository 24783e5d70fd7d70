"""What a policy that decides anew in every step is asked, and what it answers.

Values only, and no clock: times are those that tensor rank 0 read and every rank was told.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from sglang_layered.core.capability import Capability
from sglang_layered.core.layer_shape import LayerShape
from sglang_layered.core.policy import GroupPolicy
from sglang_layered.core.questions import Questions


@dataclass(frozen=True, slots=True)
class StepLoad:
    """What one step runs: decode rows through all layers, prompt rows through `prompt_layers` of them.

    `decode_tokens` is the context of all decode rows together, `prefix_lens` what each prompt has computed or
    found in the prefix cache before. With `is_apart` the two kinds of rows run in a forward each.
    """

    decode_rows: int = 0
    decode_tokens: int = 0
    prompt_lens: tuple[int, ...] = ()
    prefix_lens: tuple[int, ...] = ()
    prompt_layers: float = 0.0
    is_apart: bool = False

    @property
    def prompt_rows(self) -> int:
        """Rows of all prompts."""
        return sum(self.prompt_lens)


@dataclass(frozen=True, slots=True)
class Option:
    """A way to serve what waits: cohorts of so many tokens, so many layers a step.

    `step_s` is its longest step, `ttft_s` the time until all of it has been computed; both predicted.
    """

    cohort_tokens: int
    layers: int
    step_s: float
    ttft_s: float
    fits: bool


@dataclass(frozen=True, slots=True)
class Decision:
    """How far the cohort goes in the next step, and why.

    `budget_s` is what the step may take, `predicted_s` what it is predicted to. `fits` is False where not
    even one layer does. `chosen` and `runner_up` are what was compared when the cohort was admitted; None
    where nothing was to choose.
    """

    layers: int
    predicted_s: float
    budget_s: float
    fits: bool
    chosen: Option | None = None
    runner_up: Option | None = None


@dataclass(frozen=True, slots=True)
class QueueView:
    """The scheduler before it admits prompts; their tokens are those still to compute, in queue order.

    `is_apart` tells whether prompt and decode rows of its steps are expected to run in a forward each.
    """

    prompt_lens: tuple[int, ...]
    prefix_lens: tuple[int, ...]
    decode_rows: int
    decode_tokens: int
    due_s: float | None  # until the earliest token that is not late yet is due; None without a limit
    max_tokens: int  # that a cohort may have
    is_apart: bool = False


@dataclass(frozen=True, slots=True)
class PaceView:
    """A cohort before its next step; `done_layers` have been computed. `load` has no prompt layers yet.

    Its `is_apart` is that of the strategy that the step is expected to run in; with `--layered-execution
    auto` a step in which another one is tried takes another time.
    """

    load: StepLoad
    done_layers: int
    due_s: float | None


@dataclass(frozen=True, slots=True)
class ModelSizes:
    """What of the model decides how step times grow with their load.

    `layer_costs` are relative, with a mean of 1, and the last one's has the layers of a draft in it. With
    `is_padded` attention computes the rows of cached tokens again (SGLang's torch_native backend).
    """

    num_layers: int
    num_experts: int = 0
    num_experts_per_token: int = 0
    layer_costs: tuple[float, ...] = ()
    is_padded: bool = False

    @classmethod
    def of(
        cls,
        num_layers: int,
        layers: tuple[LayerShape, ...],
        is_padded: bool = False,
        num_draft_layers: int = 0,
    ) -> "ModelSizes":
        """Sizes of a stack; of an unknown one all layers are alike and dense.

        A draft's layers compute a prompt together with the last layer.
        """
        moe = next((layer for layer in layers if layer.num_experts), None)
        costs = [layer.cost(512, 1024) for layer in layers] if len(layers) == num_layers else [1.0]
        mean = sum(costs) / len(costs)
        relative = [cost / mean for cost in costs] if len(costs) == num_layers else [1.0] * num_layers
        relative[-1] += num_draft_layers
        return cls(
            num_layers,
            moe.num_experts if moe else 0,
            moe.num_experts_per_token if moe else 0,
            tuple(relative),
            is_padded,
        )

    def weight(self, start: int, end: int) -> float:
        """Layers [start, end) counted in layers of mean cost."""
        return sum(self.layer_costs[start:end]) if self.layer_costs else float(end - start)

    def most_layers(self, start: int, weight: float) -> int:
        """How many layers from `start` on weigh no more than `weight`."""
        count, total = 0, 0.0
        while start + count < self.num_layers:
            total += self.layer_costs[start + count] if self.layer_costs else 1.0
            if total > weight * (1 + 1e-9):
                break
            count += 1
        return count


@dataclass(frozen=True, slots=True)
class DeviceRates:
    """Measured on the device: seconds a byte read, a FLOP, a call of a layer."""

    byte_s: float
    flop_s: float
    layer_call_s: float


@dataclass(frozen=True, slots=True)
class Start:
    """What a policy starts from: rank 0's device, and what an earlier server of the same kind learned."""

    rates: DeviceRates
    learned: Mapping[str, Sequence[float]] | None = None


class StepPolicy(GroupPolicy, Questions, Protocol):
    """Takes part in every step, in what its `can` names.

    Pure: the same calls in the same order give the same answers on every rank. Only the methods of its
    capabilities are called (`capability.METHODS`); it needs no others.
    """

    @property
    def can(self) -> frozenset[Capability]:
        """What it can, from its making on; a class attribute will do."""

    @property
    def amounts(self) -> tuple[str, ...]:
        """Names of what it learns: a calibration file with other names is refused. Needed for LEARNS only."""

    def begin(self, sizes: ModelSizes, layers: Sequence[LayerShape], start: Start) -> None:
        """The model that is served and its device; called once, before the methods below it.

        Raises:
            ValueError: what was learned is of another form.
        """

    def learned(self) -> Mapping[str, Sequence[float]]:
        """What the next server may start from, as JSON values."""

    def keep_tbt_limit(self, limit_s: float | None) -> None:
        """The limit between two tokens of a request, in seconds; None for none.

        Called before `begin`, and whenever an operator changes it.
        """

    def cohort_tokens(self, view: QueueView) -> int:
        """Tokens that the next cohort may have."""

    def prompt_s(self, num_tokens: int) -> float:
        """How long a prompt takes alone, predicted."""

    def next_layers(self, view: PaceView) -> Decision:
        """How far the cohort in flight goes in the next step."""

    def observe(self, load: StepLoad, duration_s: float) -> float:
        """A step took so long; gives the time that was predicted for it."""

    def observe_gap(self, gap_s: float, was_planned: bool) -> None:
        """The longest time between two tokens that the latest step made, with all that was around it.

        `was_planned` tells that the policy had chosen its layers.
        """
