"""Policies that choose the layer groups of a cohort, and how one is found by name.

A policy is pure: the same sizes give the same plan on every rank. It never sees a request or a tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Protocol, runtime_checkable

from sglang_layered.core.plan import LayerGroupPlan
from sglang_layered.errors import ConfigError

ENTRY_POINT_GROUP = "sglang_layered.policies"
DEFAULT_POLICY = "token-target"


@runtime_checkable
class GroupPolicy(Protocol):
    """Chooses the layer groups of a cohort. Pure: same sizes in, same plan out, on every rank."""

    def plan(self, *, prompt_tokens: int, num_layers: int) -> LayerGroupPlan:
        """Plan for a cohort that has `prompt_tokens` tokens to compute in a model of `num_layers` layers."""
        ...


@dataclass(frozen=True, slots=True)
class TokenTargetPolicy:
    """One group per `target_tokens` of prompt, so each step adds about that much work (paper section 4.2)."""

    target_tokens: int = 512

    def plan(self, *, prompt_tokens: int, num_layers: int) -> LayerGroupPlan:
        """G = max(1, ceil(prompt_tokens / target_tokens)), at most one group a layer."""
        wanted = -(-prompt_tokens // self.target_tokens)  # ceiling division
        return LayerGroupPlan.even(num_layers, min(max(wanted, 1), num_layers))


@dataclass(frozen=True, slots=True)
class FixedCountPolicy:
    """The same number of groups for every cohort."""

    num_groups: int

    def plan(self, *, prompt_tokens: int, num_layers: int) -> LayerGroupPlan:
        """`num_groups` even groups whatever the prompt's length."""
        return LayerGroupPlan.even(num_layers, self.num_groups)


def find_policy(name: str, *, group_tokens: int, num_groups: int | None) -> GroupPolicy:
    """The policy behind `--layered-policy NAME`; `num_groups` overrides any name.

    NAME is `token-target`, an entry point of group `sglang_layered.policies`, or `module:Class`. A class
    with a `from_flags(group_tokens=...)` method is made through it, any other is called with no arguments.

    Raises:
        ConfigError: the name is unknown, cannot be imported, or is no policy.
    """
    if num_groups is not None:
        return FixedCountPolicy(num_groups)
    if name == DEFAULT_POLICY:
        return TokenTargetPolicy(group_tokens)
    factory = _import_class(name) if ":" in name else _entry_point(name)
    make = getattr(factory, "from_flags", None)
    try:
        policy = make(group_tokens=group_tokens) if make else factory()
    except Exception as error:
        raise ConfigError(f"--layered-policy {name}: cannot make the policy: {error!r}") from error
    if not isinstance(policy, GroupPolicy):
        raise ConfigError(f"--layered-policy {name}: it has no method plan(*, prompt_tokens, num_layers)")
    return policy


def _import_class(name: str) -> Callable[..., Any]:
    module, _, attribute = name.partition(":")
    try:
        found: Callable[..., Any] = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"--layered-policy {name}: {error}; give module:Class of an importable class"
        ) from error
    return found


def _entry_point(name: str) -> Callable[..., Any]:
    found = {entry.name: entry for entry in entry_points(group=ENTRY_POINT_GROUP)}
    if name not in found:
        known = ", ".join(sorted({DEFAULT_POLICY, *found}))
        raise ConfigError(f"--layered-policy {name}: unknown policy; known: {known}, or module:Class")
    loaded: Callable[..., Any] = found[name].load()
    return loaded
