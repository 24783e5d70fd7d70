"""Progress of a cohort through its layer groups, written once and as a value."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from sglang_layered.core.plan import LayerGroup, LayerGroupPlan
from sglang_layered.errors import CohortError


@dataclass(frozen=True, slots=True)
class Cohort:
    """Prompts that move through the layer groups together.

    `next_group` is the index of the group that the next step runs; equal to the number of groups when done.
    """

    plan: LayerGroupPlan
    request_ids: tuple[str, ...]
    next_group: int = 0

    def __post_init__(self) -> None:
        if not self.request_ids:
            raise CohortError("a cohort needs at least one request")
        if len(set(self.request_ids)) != len(self.request_ids):
            raise CohortError(f"a request is twice in cohort {self.request_ids}")
        num_groups = len(self.plan.groups)
        if not 0 <= self.next_group <= num_groups:
            raise CohortError(f"group {self.next_group} is outside [0, {num_groups}]")

    @property
    def is_done(self) -> bool:
        """True once every group has run."""
        return self.next_group == len(self.plan.groups)

    @property
    def is_last_group(self) -> bool:
        """True when the next step runs the last group."""
        return self.next_group == len(self.plan.groups) - 1

    @property
    def group(self) -> LayerGroup:
        """The group that the next step runs."""
        groups = self.plan.groups
        if self.next_group == len(groups):
            raise CohortError(f"cohort {self.request_ids} has run all its groups")
        return groups[self.next_group]

    def with_next_layers(self, num_layers: int) -> "Cohort":
        """The cohort whose next group has so many layers, and what is left after it is one group."""
        start, last = self.group.start, self.plan.num_layers
        end = min(start + num_layers, last)
        rest = (LayerGroup(end, last),) if end < last else ()
        groups = (*self.plan.groups[: self.next_group], LayerGroup(start, end), *rest)
        return Cohort(LayerGroupPlan(last, groups), self.request_ids, self.next_group)

    def without(self, request_ids: Iterable[str]) -> "Cohort":
        """The cohort after these requests have left it; others must stay."""
        leaving = set(request_ids)
        if not leaving <= set(self.request_ids):
            raise CohortError(
                f"{sorted(leaving - set(self.request_ids))} are not in cohort {self.request_ids}"
            )
        return replace(self, request_ids=tuple(name for name in self.request_ids if name not in leaving))

    def advance(self) -> "Cohort":
        """The cohort after its next group has run."""
        if self.is_done:
            raise CohortError(f"cohort {self.request_ids} has run all its groups")
        return replace(self, next_group=self.next_group + 1)
