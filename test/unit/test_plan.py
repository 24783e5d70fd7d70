"""Plans and the policies that make them."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_layered.core.layer_shape import LayerShape
from sglang_layered.core.plan import LayerGroup, LayerGroupPlan
from sglang_layered.core.policy import BalancedPolicy, FixedCountPolicy, TokenTargetPolicy, find_policy
from sglang_layered.core.view import SchedulerView
from sglang_layered.errors import ConfigError, PlanError


def layers_by_dealing(num_layers: int, num_groups: int) -> list[list[int]]:
    """Oracle: deal seats to the groups one by one, then seat the layers in order."""
    seats = [0] * num_groups
    for turn in range(num_layers):
        seats[turn % num_groups] += 1
    layers = iter(range(num_layers))
    return [[next(layers) for _ in range(count)] for count in seats]


def layers_of(plan: LayerGroupPlan) -> list[list[int]]:
    return [list(range(group.start, group.end)) for group in plan.groups]


@given(prompt_tokens=st.integers(1, 200_000), num_layers=st.integers(1, 128))
def test_plan_matches_dealing_oracle(prompt_tokens: int, num_layers: int) -> None:
    plan = TokenTargetPolicy(512).plan(SchedulerView(num_layers=num_layers, prompt_lens=(prompt_tokens,)))
    num_groups = min(num_layers, math.ceil(prompt_tokens / 512))
    assert layers_of(plan) == layers_by_dealing(num_layers, num_groups)


@pytest.mark.parametrize(("tokens", "groups"), [(1, 1), (512, 1), (513, 2), (8192, 16), (30_000, 48)])
def test_paper_rule_on_48_layers(tokens: int, groups: int) -> None:
    view = SchedulerView(num_layers=48, prompt_lens=(tokens,))
    assert TokenTargetPolicy().plan(view).num_groups == groups


def test_a_cohort_counts_the_tokens_of_all_its_prompts() -> None:
    view = SchedulerView(num_layers=48, prompt_lens=(500, 12, 1), prefix_lens=(9000, 0, 0))
    assert TokenTargetPolicy().plan(view).num_groups == 2
    assert FixedCountPolicy(5).plan(view) == LayerGroupPlan.even(48, 5)


def test_whole_is_one_group() -> None:
    assert layers_of(LayerGroupPlan.whole(5)) == [[0, 1, 2, 3, 4]]


@pytest.mark.parametrize("groups", [0, -1, 9])
def test_impossible_group_counts_are_refused(groups: int) -> None:
    with pytest.raises(PlanError, match="8 layers"):
        LayerGroupPlan.even(8, groups)


@pytest.mark.parametrize(
    "groups",
    [
        (),
        (LayerGroup(0, 4),),
        (LayerGroup(0, 4), LayerGroup(5, 8)),
        (LayerGroup(0, 5), LayerGroup(4, 8)),
        (LayerGroup(0, 0), LayerGroup(0, 8)),
        (LayerGroup(4, 8), LayerGroup(0, 4)),
    ],
)
def test_groups_that_do_not_tile_are_refused(groups: tuple[LayerGroup, ...]) -> None:
    with pytest.raises(PlanError):
        LayerGroupPlan(8, groups)


class OneLayerAtATime:
    """A policy that `--layered-policy module:Class` can name."""

    def plan(self, view: SchedulerView) -> LayerGroupPlan:
        return LayerGroupPlan.even(view.num_layers, view.num_layers)


class NoPolicy:
    pass


def find(name: str, num_groups: int | None = None):
    return find_policy(name, group_tokens=64, num_groups=num_groups)


def test_policies_are_found_by_name_and_by_class() -> None:
    assert find("token-target") == TokenTargetPolicy(64)
    assert find("token-target", num_groups=3) == FixedCountPolicy(3)
    policy = find(f"{__name__}:OneLayerAtATime")
    assert policy.plan(SchedulerView(num_layers=5, prompt_lens=(1,))).num_groups == 5


@pytest.mark.parametrize(
    "name", ["fastest", "no.such.module:Class", f"{__name__}:Absent", f"{__name__}:NoPolicy"]
)
def test_unknown_policies_name_the_flag(name: str) -> None:
    with pytest.raises(ConfigError, match="--layered-policy"):
        find(name)


def heaviest(plan: LayerGroupPlan, costs: list[float]) -> float:
    return max(sum(costs[group.start : group.end]) for group in plan.groups)


@given(st.data(), st.lists(st.floats(0.01, 100), min_size=1, max_size=9))
def test_balanced_groups_are_as_light_as_any_cut_makes_them(data: st.DataObject, costs: list[float]) -> None:
    num_groups = data.draw(st.integers(1, len(costs)))
    plan = LayerGroupPlan.balanced(costs, num_groups)
    assert plan.num_groups == num_groups
    every_cut = (
        LayerGroupPlan.from_cuts(len(costs), [0, *cuts, len(costs)])
        for cuts in combinations(range(1, len(costs)), num_groups - 1)
    )
    assert heaviest(plan, costs) <= min(heaviest(cut, costs) for cut in every_cut) * (1 + 1e-5)


@pytest.mark.parametrize("num_groups", [0, 4])
def test_balanced_groups_need_a_layer_each(num_groups: int) -> None:
    with pytest.raises(PlanError, match="cannot cut 3 layers"):
        LayerGroupPlan.balanced([1.0, 1.0, 1.0], num_groups)


def test_balanced_policy_puts_cheap_layers_together() -> None:
    cheap, dear = LayerShape(dense_params=100), LayerShape(dense_params=100, num_experts=4, expert_params=900)
    dear = replace(dear, num_experts_per_token=2)
    view = SchedulerView(6, (1024,), layers=(cheap, cheap, cheap, cheap, dear, dear))
    assert [group.end for group in BalancedPolicy(512).plan(view).groups] == [5, 6]
    assert [group.end for group in TokenTargetPolicy(512).plan(view).groups] == [3, 6]


def test_balanced_policy_says_when_sizes_are_not_known() -> None:
    with pytest.raises(PlanError, match="sizes of 0 of 6 layers"):
        BalancedPolicy().plan(SchedulerView(6, (1024,)))


def test_balanced_policy_is_found_by_name_with_the_group_tokens() -> None:
    assert find_policy("balanced", group_tokens=64, num_groups=None) == BalancedPolicy(64)
