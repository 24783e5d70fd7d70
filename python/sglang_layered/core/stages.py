"""Pipeline stages: how a model's layers lie on them, and plans whose groups never cross a stage's edge."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from sglang_layered.core.plan import LayerGroup, LayerGroupPlan
from sglang_layered.errors import PlanError


@dataclass(frozen=True, slots=True)
class PipelineStages:
    """`cuts` are the first layers of the stages and, last, the number of layers."""

    cuts: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.cuts) < 2 or self.cuts[0] != 0 or any(low >= high for low, high in pairwise(self.cuts)):
            raise PlanError(f"{self.cuts} are no pipeline stages")

    @property
    def num_layers(self) -> int:
        """Layers of the whole model."""
        return self.cuts[-1]

    @property
    def layers(self) -> tuple[LayerGroup, ...]:
        """The layer range of each stage."""
        return tuple(LayerGroup(low, high) for low, high in pairwise(self.cuts))

    def stage_of(self, group: LayerGroup) -> int:
        """The stage that runs a group."""
        for index, stage in enumerate(self.layers):
            if stage.start <= group.start and group.end <= stage.end:
                return index
        raise PlanError(f"{group} lies in no stage of {self.cuts}")

    def joined(self, plans: Sequence[LayerGroupPlan]) -> LayerGroupPlan:
        """One plan over all layers from a plan of each stage's own layers, counted from 0."""
        groups = (
            LayerGroup(stage.start + group.start, stage.start + group.end)
            for stage, plan in zip(self.layers, plans, strict=True)
            for group in plan.groups
        )
        return LayerGroupPlan(self.num_layers, tuple(groups))

    def rest_at_once(self, plan: LayerGroupPlan, next_group: int) -> LayerGroupPlan:
        """The same plan with what is left of each stage as one group."""
        done = plan.groups[:next_group]
        start = done[-1].end if done else 0
        cuts = [start, *(cut for cut in self.cuts if cut > start)]
        return LayerGroupPlan(
            self.num_layers, (*done, *(LayerGroup(low, high) for low, high in pairwise(cuts)))
        )
