"""Plans and the policies that make them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_layered.core.plan import LayerGroup, LayerGroupPlan
from sglang_layered.core.policy import FixedCountPolicy, TokenTargetPolicy, find_policy
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
    plan = TokenTargetPolicy(512).plan(prompt_tokens=prompt_tokens, num_layers=num_layers)
    num_groups = min(num_layers, math.ceil(prompt_tokens / 512))
    assert layers_of(plan) == layers_by_dealing(num_layers, num_groups)


@pytest.mark.parametrize(("tokens", "groups"), [(1, 1), (512, 1), (513, 2), (8192, 16), (30_000, 48)])
def test_paper_rule_on_48_layers(tokens: int, groups: int) -> None:
    assert TokenTargetPolicy().plan(prompt_tokens=tokens, num_layers=48).num_groups == groups


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

    def plan(self, *, prompt_tokens: int, num_layers: int) -> LayerGroupPlan:
        return LayerGroupPlan.even(num_layers, num_layers)


class NoPolicy:
    pass


def find(name: str, num_groups: int | None = None):
    return find_policy(name, group_tokens=64, num_groups=num_groups)


def test_policies_are_found_by_name_and_by_class() -> None:
    assert find("token-target") == TokenTargetPolicy(64)
    assert find("token-target", num_groups=3) == FixedCountPolicy(3)
    policy = find(f"{__name__}:OneLayerAtATime")
    assert policy.plan(prompt_tokens=1, num_layers=5).num_groups == 5


@pytest.mark.parametrize(
    "name", ["fastest", "no.such.module:Class", f"{__name__}:Absent", f"{__name__}:NoPolicy"]
)
def test_unknown_policies_name_the_flag(name: str) -> None:
    with pytest.raises(ConfigError, match="--layered-policy"):
        find(name)
