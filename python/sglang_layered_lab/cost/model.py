"""The step-time model: sizes, coverage and coefficients together. Pure; `cost`, `paper` and `gpu` ask it."""

from __future__ import annotations

from dataclasses import dataclass

from sglang_layered_lab.cost.costs import StepCosts
from sglang_layered_lab.cost.coverage import Coverage
from sglang_layered_lab.cost.shape import ModelShape
from sglang_layered_lab.cost.step import Attention, Step, StepWork, work_of


@dataclass(frozen=True, slots=True)
class StepModel:
    """How long a step of this model takes on a machine with these costs."""

    shape: ModelShape
    coverage: Coverage
    costs: StepCosts
    attention: Attention = "exact"

    def work(self, step: Step) -> StepWork:
        """What there is to do in a step."""
        return work_of(self.shape, self.coverage, step, self.attention)

    def step_s(self, step: Step) -> float:
        """How long a step takes."""
        return self.costs.time_s(self.work(step))
