"""Layer groups and the plan that tiles a model with them; it knows no request, tensor or clock."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from sglang_layered.errors import PlanError


@dataclass(frozen=True, slots=True)
class LayerGroup:
    """Half-open layer range [start, end)."""

    start: int
    end: int

    @property
    def num_layers(self) -> int:
        """Layers in the group."""
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class LayerGroupPlan:
    """How a cohort visits the layers: every layer once, in order (paper section 4)."""

    num_layers: int
    groups: tuple[LayerGroup, ...]

    def __post_init__(self) -> None:
        at = 0
        for group in self.groups:
            if group.start != at or group.end > self.num_layers:
                raise PlanError(f"groups {self.groups} do not tile [0, {self.num_layers})")
            if group.end <= at:
                raise PlanError(f"groups {self.groups} contain an empty range")
            at = group.end
        if at != self.num_layers:
            raise PlanError(f"groups {self.groups} do not tile [0, {self.num_layers})")

    @property
    def num_groups(self) -> int:
        """Groups, which is also the number of steps a cohort takes."""
        return len(self.groups)

    @classmethod
    def even(cls, num_layers: int, num_groups: int) -> "LayerGroupPlan":
        """Split evenly; when it does not divide, the first groups get one layer more."""
        _check_count(num_layers, num_groups)
        base, extra = divmod(num_layers, num_groups)
        cuts = [index * base + min(index, extra) for index in range(num_groups + 1)]
        return cls.from_cuts(num_layers, cuts)

    @classmethod
    def balanced(cls, costs: Sequence[float], num_groups: int) -> "LayerGroupPlan":
        """Split so that the most expensive group is as cheap as can be; `costs` are those of the layers."""
        _check_count(len(costs), num_groups)
        return cls.from_cuts(len(costs), _lightest_cuts(tuple(costs), num_groups))

    @classmethod
    def whole(cls, num_layers: int) -> "LayerGroupPlan":
        """All layers as one group."""
        return cls.even(num_layers, 1)

    @classmethod
    def from_cuts(cls, num_layers: int, cuts: Sequence[int]) -> "LayerGroupPlan":
        """Groups between neighbouring cuts; the first cut must be 0 and the last `num_layers`."""
        return cls(num_layers, tuple(LayerGroup(low, high) for low, high in pairwise(cuts)))


def _check_count(num_layers: int, num_groups: int) -> None:
    if not 1 <= num_groups <= num_layers:
        raise PlanError(f"cannot cut {num_layers} layers into {num_groups} groups")


def _lightest_cuts(costs: tuple[float, ...], num_groups: int) -> list[int]:
    """Cuts whose heaviest group is the lightest possible: the limit is bisected, then filled up greedily."""
    low, high = max(costs), sum(costs)
    while high - low > 1e-6 * high:
        middle = (low + high) / 2
        if len(_fill(costs, middle, num_groups)) - 1 <= num_groups:
            high = middle
        else:
            low = middle
    return _fill(costs, high, num_groups)


def _fill(costs: tuple[float, ...], limit: float, num_groups: int) -> list[int]:
    """Cuts of groups filled up to `limit`; closed earlier where every later group needs a layer."""
    cuts, total = [0], 0.0
    for index, cost in enumerate(costs):
        must_close = num_groups - len(cuts) == len(costs) - index
        if index > cuts[-1] and (must_close or total + cost > limit):
            cuts.append(index)
            total = 0.0
        total += cost
    return [*cuts, len(costs)]
