"""Policies that choose the layer groups of a cohort, and how one is found by name.

A policy is pure: the same view gives the same plan on every rank. It never sees a request or a tensor.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any, Protocol, runtime_checkable

from sglang_layered.core.capability import check_capabilities
from sglang_layered.core.lookup import find_factory
from sglang_layered.core.plan import LayerGroupPlan
from sglang_layered.core.view import SchedulerView
from sglang_layered.errors import ConfigError, PlanError

ENTRY_POINT_GROUP = "sglang_layered.policies"
DEFAULT_POLICY = "token-target"
BALANCED_POLICY = "balanced"
AUTO_POLICY = "auto"
LEARNED_POLICIES = {  # modules that bring SciPy, which the other policies do without
    AUTO_POLICY: "sglang_layered.auto.policy:AutoPolicy",
    "flow-prefill": "sglang_layered.policies.flow_prefill:FlowPrefillPolicy",
    "fair-batching": "sglang_layered.policies.fair_batching:FairBatchingPolicy",
    "near-late": "sglang_layered.policies.near_late:NearLatePolicy",
    "staggered": "sglang_layered.policies.staggered:StaggeredPolicy",
}


@runtime_checkable
class GroupPolicy(Protocol):
    """Chooses the layer groups of a cohort. Pure: same view in, same plan out, on every rank."""

    def plan(self, view: SchedulerView) -> LayerGroupPlan:
        """Plan for the cohort that `view` describes; it must tile all of `view.num_layers`."""


@dataclass(frozen=True, slots=True)
class TokenTargetPolicy:
    """One group per `target_tokens` of prompt, so each step adds about that much work (paper section 4.2)."""

    target_tokens: int = 512

    def plan(self, view: SchedulerView) -> LayerGroupPlan:
        """G = max(1, ceil(prompt_tokens / target_tokens)), at most one group a layer."""
        return LayerGroupPlan.even(view.num_layers, _num_groups(view, self.target_tokens))


@dataclass(frozen=True, slots=True)
class BalancedPolicy:
    """As many groups as `token-target`, cut so that the most expensive one is as cheap as it can be.

    For stacks whose layers differ: dense layers first, sliding windows, experts in every second layer.
    """

    target_tokens: int = 512

    def plan(self, view: SchedulerView) -> LayerGroupPlan:
        """Groups of equal estimated cost (`LayerShape.cost`).

        Raises:
            PlanError: the sizes of the layers are not known.
        """
        if len(view.layers) != view.num_layers:
            raise PlanError(
                f"policy balanced knows the sizes of {len(view.layers)} of {view.num_layers} layers"
            )
        num_rows, context = view.prompt_tokens + view.num_running, view.mean_context_tokens
        costs = [layer.cost(num_rows, context) for layer in view.layers]
        return LayerGroupPlan.balanced(costs, _num_groups(view, self.target_tokens))


def _num_groups(view: SchedulerView, target_tokens: int) -> int:
    """G = max(1, ceil(prompt_tokens / target_tokens)), at most one group a layer (paper section 4.2)."""
    wanted = -(-view.prompt_tokens // target_tokens)  # ceiling division
    return min(max(wanted, 1), view.num_layers)


@dataclass(frozen=True, slots=True)
class FixedCountPolicy:
    """The same number of groups for every cohort."""

    num_groups: int

    def plan(self, view: SchedulerView) -> LayerGroupPlan:
        """`num_groups` even groups whatever the prompt's length."""
        return LayerGroupPlan.even(view.num_layers, self.num_groups)


def find_policy(name: str, *, group_tokens: int, num_groups: int | None) -> GroupPolicy:
    """The policy behind `--layered-policy NAME`; `num_groups` overrides any name.

    NAME is `token-target`, `balanced`, one of `LEARNED_POLICIES`, an entry point of group
    `sglang_layered.policies`, or `module:Class`. A class with a `from_flags(group_tokens=...)` method is made
    through it, any other is called with no arguments.

    Raises:
        ConfigError: the name is unknown, cannot be imported, is no policy, or lacks what it says it can.
    """
    if num_groups is not None:
        return FixedCountPolicy(num_groups)
    where = f"--layered-policy {name}"
    shipped: dict[str, Callable[..., Any]] = {
        DEFAULT_POLICY: partial(TokenTargetPolicy, group_tokens),
        BALANCED_POLICY: partial(BalancedPolicy, group_tokens),
        **{each: partial(_learned, path, group_tokens) for each, path in LEARNED_POLICIES.items()},
    }
    factory = find_factory("policy", name, where=where, group=ENTRY_POINT_GROUP, shipped=shipped)
    make = getattr(factory, "from_flags", None)
    try:
        policy = make(group_tokens=group_tokens) if make else factory()
    except Exception as error:
        raise ConfigError(f"{where}: cannot make the policy: {error!r}") from error
    if not isinstance(policy, GroupPolicy):
        raise ConfigError(f"{where}: it has no method plan(view)")
    check_capabilities(policy, where)
    return policy


def _learned(path: str, group_tokens: int) -> GroupPolicy:
    module, _, name = path.partition(":")
    made: GroupPolicy = getattr(import_module(module), name)(group_tokens=group_tokens)
    return made
