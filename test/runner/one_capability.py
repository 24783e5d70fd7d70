"""Policies with one capability each: whatever else would be called of them is not there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sglang_layered.hooks import (
    Capability,
    Decision,
    LayerGroupPlan,
    LayerShape,
    ModelSizes,
    PaceView,
    QueueView,
    SchedulerView,
    Start,
    StepLoad,
)


class OnStages:
    """Plans, and says that this is enough."""

    can = frozenset({Capability.RUNS_ON_STAGES})

    def __init__(self) -> None:
        self.calls: list[str] = []

    def plan(self, view: SchedulerView) -> LayerGroupPlan:
        return LayerGroupPlan.even(view.num_layers, min(4, view.num_layers))


class Learns(OnStages):
    can = frozenset({Capability.LEARNS})
    amounts = ("num_steps",)
    num_steps = 0

    def begin(self, sizes: ModelSizes, layers: Sequence[LayerShape], start: Start) -> None:
        self.calls.append("begin")
        if start.learned is not None:
            (self.num_steps,) = start.learned["num_steps"]

    def observe(self, load: StepLoad, duration_s: float) -> float:
        self.calls.append("observe")
        self.num_steps += 1
        return duration_s

    def learned(self) -> Mapping[str, Sequence[float]]:
        return {"num_steps": (self.num_steps,)}


class LearnsOnStages(Learns):
    can = frozenset({Capability.LEARNS, Capability.RUNS_ON_STAGES})


class Paces(OnStages):
    can = frozenset({Capability.PACES_STEPS})

    def begin(self, sizes: ModelSizes, layers: Sequence[LayerShape], start: Start) -> None:
        self.calls.append("begin")

    def cohort_tokens(self, view: QueueView) -> int:
        assert view.due_s is None, "it keeps no limit"
        self.calls.append("cohort_tokens")
        return view.max_tokens

    def next_layers(self, view: PaceView) -> Decision:
        assert view.due_s is None, "it keeps no limit"
        self.calls.append("next_layers")
        return Decision(3, 0.1, 0.2, True)

    def prompt_s(self, num_tokens: int) -> float:
        return 1e-3 * num_tokens


class KeepsLimit(OnStages):
    can = frozenset({Capability.KEEPS_TBT_LIMIT})

    def keep_tbt_limit(self, limit_s: float | None) -> None:
        self.calls.append(f"limit {limit_s}")

    def observe_gap(self, gap_s: float, was_planned: bool) -> None:
        assert not was_planned
        self.calls.append("observe_gap")
