"""A policy is known by what it says that it can: no name and no class of a policy outside of its own room."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sglang_layered.config import LayeredConfig
from sglang_layered.core.capability import METHODS, Capability, capabilities_of, check_capabilities
from sglang_layered.core.plan import LayerGroupPlan
from sglang_layered.core.policy import LEARNED_POLICIES, find_policy
from sglang_layered.core.questions import Snapshot
from sglang_layered.core.view import SchedulerView
from sglang_layered.errors import ConfigError
from sglang_layered.refusals import REFUSALS, Start
from sglang_layered.server_flags import _check_unused

REPO = Path(__file__).resolve().parents[2]
EVERY_STEP = "policy_every_step:EveryStep"


@pytest.fixture(autouse=True)
def examples_on_path() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(REPO / "examples"))
        patch.syspath_prepend(str(Path(__file__).parent))
        yield


class Plain:
    def plan(self, view: SchedulerView) -> LayerGroupPlan:
        return LayerGroupPlan.whole(view.num_layers)


class KeepsLimit(Plain):
    can = frozenset({Capability.KEEPS_TBT_LIMIT, Capability.RUNS_ON_STAGES})

    def __init__(self) -> None:
        self.limits_s: list[float | None] = []

    def keep_tbt_limit(self, limit_s: float | None) -> None:
        self.limits_s.append(limit_s)

    def observe_gap(self, gap_s: float, was_planned: bool) -> None:
        pass


class CannotKeepIt(KeepsLimit):
    def keep_tbt_limit(self, limit_s: float | None) -> None:
        raise RuntimeError("no limit for me")


class OrdersQueue(Plain):
    can = frozenset({Capability.ORDERS_QUEUE})

    def order(self, view: Snapshot) -> list[int]:
        return []


class Preempts(Plain):
    can = frozenset({Capability.PREEMPTS_COHORTS})

    def preempt(self, view: Snapshot) -> None:
        return None


class OnNoStage(Plain):
    can = frozenset()


def layered(policy: str, **flags: Any) -> LayeredConfig:
    return LayeredConfig("layered", layered_policy=policy, **flags)


def here(policy: type) -> str:
    return f"{Path(__file__).stem}:{policy.__name__}"


def test_nothing_but_the_lookup_and_its_own_room_knows_the_policy_auto() -> None:
    package = REPO / "python" / "sglang_layered"
    named = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if re.search(r"\bAutoPolicy\b|\bAUTO_POLICY\b|isinstance\([^)]*StepPolicy", path.read_text())
    }
    kin = ("auto/", "policies/")  # the policies that inherit from it
    assert {path for path in named if not path.startswith(kin)} == {"core/policy.py"}


def test_every_known_name_is_named_for_an_unknown_one() -> None:
    known = ", ".join(sorted({"token-target", "balanced", *LEARNED_POLICIES}))
    with pytest.raises(ConfigError, match=f"known: {known}, or module:Class"):
        find_policy("nope", group_tokens=512, num_groups=None)


@pytest.mark.parametrize("name", ["auto", "balanced", "token-target", EVERY_STEP])
def test_policies_have_what_they_say(name: str) -> None:
    policy = find_policy(name, group_tokens=512, num_groups=None)
    check_capabilities(policy, "here")
    is_on_steps = name in ("auto", EVERY_STEP)
    assert (Capability.PACES_STEPS in capabilities_of(policy)) == is_on_steps
    assert (Capability.RUNS_ON_STAGES in capabilities_of(policy)) != is_on_steps


@pytest.mark.parametrize(
    "capability", [each for each, names in METHODS.items() if names], ids=lambda each: each.value
)
def test_a_capability_without_its_methods_is_refused(capability: Capability) -> None:
    policy = Plain()
    policy.can = frozenset({capability})
    missing = ", ".join(METHODS[capability])
    with pytest.raises(ConfigError, match=f"here: it can {capability.value} and has no method {missing}"):
        check_capabilities(policy, "here")


@pytest.mark.parametrize(
    "capability", [each for each, names in METHODS.items() if names], ids=lambda each: each.value
)
def test_methods_that_nobody_would_call_are_refused(capability: Capability) -> None:
    policy = Plain()
    for name in METHODS[capability]:
        setattr(policy, name, print)
    with pytest.raises(ConfigError, match="and no attribute can; add can = frozenset"):
        check_capabilities(policy, "here")


@pytest.mark.parametrize("amounts", [None, ["a"], (1,)])
def test_what_a_policy_learns_has_names(amounts: object) -> None:
    policy = Plain()
    policy.can, policy.amounts = frozenset({Capability.LEARNS}), amounts
    policy.begin = policy.observe = policy.learned = print
    with pytest.raises(ConfigError, match="its attribute amounts is"):
        check_capabilities(policy, "here")


def test_capabilities_are_a_set_of_them() -> None:
    policy = Plain()
    policy.can = {"PACES_STEPS"}
    with pytest.raises(ConfigError, match="give a frozenset of Capability"):
        check_capabilities(policy, "here")


def test_a_calibration_file_needs_a_policy_that_learns() -> None:
    for name in ("auto", EVERY_STEP):
        layered(name, layered_calibration_file="here.json").check_layered_flags()
        layered(name, layered_calibration_file="here.json", layered_num_groups=4).check_layered_flags()
    for name in ("token-target", here(KeepsLimit)):
        with pytest.raises(ConfigError, match=f"--layered-calibration-file here.json: .* {name} learns no"):
            layered(name, layered_calibration_file="here.json").check_layered_flags()


def test_a_limit_is_handed_to_whoever_keeps_one() -> None:
    assert layered("auto", slo_tbt_ms=30).make_policy().tbt_limit_s == 0.03
    assert layered(EVERY_STEP, slo_tbt_ms=30).make_policy().limit_s == 0.03
    assert layered(here(KeepsLimit)).make_policy().limits_s == [None]
    layered(here(Plain), slo_tbt_ms=30).make_policy()
    with pytest.raises(ConfigError, match=r"--slo-tbt-ms 30: .*CannotKeepIt raised .*no limit for me"):
        layered(here(CannotKeepIt), slo_tbt_ms=30).make_policy()


@pytest.mark.parametrize(
    ("policy", "limit", "is_refused"),
    [
        ("auto", "slo_tbt_ms", False),
        (EVERY_STEP, "slo_tbt_ms", False),
        (EVERY_STEP, "slo_ttft_ms", False),
        (here(KeepsLimit), "slo_tbt_ms", False),
        (here(KeepsLimit), "slo_ttft_ms", True),
        (here(OrdersQueue), "slo_ttft_ms", False),
        (here(OrdersQueue), "slo_tbt_ms", False),
        ("balanced", "slo_tbt_ms", True),
    ],
)
def test_limits_need_metrics_or_a_policy_that_acts_on_them(policy: str, limit: str, is_refused: bool) -> None:
    config = layered(policy, **{limit: 50})
    asked, rows = next(iter(REFUSALS.items()))
    assert not asked(Start(config, SimpleNamespace(enable_metrics=True)))
    start = Start(config, SimpleNamespace(enable_metrics=False))
    assert asked(start)
    told = [text for text, applies in rows.items() if applies(start)]
    assert [text.split()[0] for text in told] == [f"--{limit.replace('_', '-')}"] * is_refused
    assert all("add --enable-metrics" in text for text in told)


def test_who_overtakes_is_asked_only_where_somebody_may() -> None:
    layered(here(Preempts), layered_max_parked=1).check_layered_flags()
    with pytest.raises(ConfigError, match=r"--layered-policy .*Preempts: .* --layered-max-parked; give 1"):
        layered(here(Preempts)).check_layered_flags()


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("schedule_policy", "lpm"),
        ("enable_priority_scheduling", True),
        ("lora_drain_wait_threshold", 1.0),
    ],
)
def test_an_ordered_queue_is_sorted_by_nobody_else(flag: str, value: object) -> None:
    usual = {"schedule_policy": "fcfs", "enable_priority_scheduling": False, "lora_drain_wait_threshold": 0.0}
    texts = {
        text: applies for rows in REFUSALS.values() for text, applies in rows.items() if "ORDERS" in text
    }
    for policy, flags, count in (
        (OrdersQueue, usual | {flag: value}, 1),
        (OrdersQueue, usual, 0),
        (Plain, usual | {flag: value}, 0),
    ):
        start = Start(layered(here(policy)), SimpleNamespace(**flags))
        found = [text for text, applies in texts.items() if applies(start)]
        assert len(found) == count and all(flag.replace("_", "-") in text for text in found)


def test_capabilities_of_another_mode_are_not_asked_for() -> None:
    assert not LayeredConfig(layered_policy="no.such:Policy").policy_can(Capability.LEARNS)
    assert layered("auto", layered_num_groups=4).policy_can(Capability.LEARNS)


def test_policies_go_by_their_own_text_or_the_name_that_found_them() -> None:
    assert layered(here(Plain)).text_of(layered(here(Plain)).make_policy()) == here(Plain)
    assert "auto(30 ms)" in layered("auto").text_of(layered("auto", slo_tbt_ms=30).make_policy())
    for name in ("token-target", "balanced", EVERY_STEP):
        assert " at 0x" not in layered(name).text_of(layered(name).make_policy())
    fixed = layered(here(Plain), layered_num_groups=3)
    assert fixed.text_of(fixed.make_policy()) == "FixedCountPolicy(num_groups=3)"


@pytest.mark.parametrize(
    "flags", [{"layered_listeners": ["jsonl=x"]}, {"layered_calibration_file": "x", "layered_policy": "auto"}]
)
def test_files_that_would_never_come_are_refused_without_layered_mode(flags: dict[str, Any]) -> None:
    flag = "--" + next(iter(flags)).replace("_", "-")
    with pytest.raises(ConfigError, match=f"{flag} without --prefill-mode layered"):
        _check_unused(LayeredConfig(**flags))
    _check_unused(LayeredConfig("layered", **flags))


def test_settings_without_layered_mode_are_warned_about_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        _check_unused(LayeredConfig())
        _check_unused(LayeredConfig("layered", layered_group_tokens=64))
        _check_unused(LayeredConfig(enable_energy_metrics=True, slo_ttft_ms=100))
        assert not caplog.records
        _check_unused(LayeredConfig(layered_group_tokens=64, layered_policy="balanced"))
    [record] = caplog.records
    assert record.getMessage().startswith("--layered-group-tokens, --layered-policy: without --prefill-mode")
