"""Pipeline stages: plans that never cross an edge."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_layered.core.plan import LayerGroup, LayerGroupPlan
from sglang_layered.core.stages import PipelineStages
from sglang_layered.errors import PlanError

STAGES = PipelineStages((0, 3, 8))


@st.composite
def staged_plans(draw: st.DrawFn) -> tuple[PipelineStages, LayerGroupPlan]:
    sizes = draw(st.lists(st.integers(1, 12), min_size=1, max_size=4))
    cuts = [0]
    for size in sizes:
        cuts.append(cuts[-1] + size)
    stages = PipelineStages(tuple(cuts))
    plans = [LayerGroupPlan.even(size, draw(st.integers(1, size))) for size in sizes]
    return stages, stages.joined(plans)


@given(staged_plans())
def test_every_group_lies_in_one_stage_and_stages_come_in_order(
    case: tuple[PipelineStages, LayerGroupPlan],
) -> None:
    stages, plan = case
    where = [stages.stage_of(group) for group in plan.groups]
    assert where == sorted(where)
    assert set(where) == set(range(len(stages.layers)))
    assert {group.start for group in plan.groups} >= set(stages.cuts[:-1])


@given(staged_plans(), st.data())
def test_the_rest_at_once_keeps_what_ran_and_the_edges(
    case: tuple[PipelineStages, LayerGroupPlan], data: st.DataObject
) -> None:
    stages, plan = case
    done = data.draw(st.integers(0, plan.num_groups - 1))
    hurried = stages.rest_at_once(plan, done)
    assert hurried.groups[:done] == plan.groups[:done]
    at = plan.groups[done].start
    assert [group.end for group in hurried.groups[done:]] == [cut for cut in stages.cuts if cut > at]


def test_a_group_over_an_edge_is_in_no_stage() -> None:
    assert STAGES.stage_of(LayerGroup(3, 8)) == 1
    with pytest.raises(PlanError, match="lies in no stage"):
        STAGES.stage_of(LayerGroup(2, 4))


@pytest.mark.parametrize("cuts", [(0,), (1, 4), (0, 4, 4), (0, 5, 3)])
def test_cuts_that_are_no_stages(cuts: tuple[int, ...]) -> None:
    with pytest.raises(PlanError, match="no pipeline stages"):
        PipelineStages(cuts)
