"""The examples do what their docstrings and docs/research.md say."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_layered.core.policy import GroupPolicy, find_policy
from sglang_layered.hooks import (
    CohortFinished,
    Decode,
    DeviceRates,
    Flying,
    ModelSizes,
    PaceView,
    Running,
    SchedulerView,
    SloClass,
    Snapshot,
    Start,
    StepDone,
    StepLoad,
    StepTiming,
    Waiting,
)
from sglang_layered.listeners.dispatch import Listener, find_listeners

REPO = Path(__file__).resolve().parents[2]
EXAMPLES = REPO / "examples"


@pytest.fixture(scope="module", autouse=True)
def examples_on_path() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        yield


def flags_in_commands(text: str, flag: str) -> list[str]:
    """The values of `flag` in the commands that `text` shows, which must put examples/ on the path."""
    commands = re.findall(rf"(PYTHONPATH=examples (?:.+\\\n)+.*{flag}.+)", text)
    words = [shlex.split(command) for command in commands]
    return [each[each.index(flag) + 1] for each in words]


def by_load() -> GroupPolicy:
    return find_policy("policy_by_load:ByLoad", group_tokens=512, num_groups=None)


def step(number: int, duration_s: float) -> StepDone:
    return StepDone(number, float(number), "decode", float(number), duration_s, num_decode_rows=1)


@pytest.mark.parametrize(
    ("name", "flag", "value"),
    [
        ("policy_by_load.py", "--layered-policy", "policy_by_load:ByLoad"),
        ("policy_every_step.py", "--layered-policy", "policy_every_step:EveryStep"),
        ("policy_by_deadline.py", "--layered-policy", "policy_by_deadline:ByDeadline"),
        (
            "listener_slowest_steps.py",
            "--layered-listeners",
            "listener_slowest_steps:SlowestSteps=slowest.txt",
        ),
    ],
)
def test_the_commands_name_the_examples(name: str, flag: str, value: str) -> None:
    for text in ((EXAMPLES / name).read_text(), (REPO / "docs" / "research.md").read_text()):
        assert value in flags_in_commands(text, flag)


def test_the_policy_is_short() -> None:
    assert len((EXAMPLES / "policy_by_load.py").read_text().splitlines()) <= 30


timings = st.builds(
    StepTiming,
    kind=st.sampled_from(["prefill", "decode", "layered"]),
    duration_s=st.floats(0, 5),
    num_decode_rows=st.integers(0, 64),
    num_prompt_rows=st.integers(0, 8192),
    num_layers=st.integers(1, 64),
)


@given(
    num_layers=st.integers(1, 64),
    prompt_lens=st.lists(st.integers(1, 40_000), min_size=1, max_size=4),
    num_running=st.integers(0, 300),
    last_step=st.none() | timings,
)
def test_the_policy_plans_every_layer(
    num_layers: int, prompt_lens: list[int], num_running: int, last_step: StepTiming | None
) -> None:
    view = SchedulerView(num_layers, tuple(prompt_lens), num_running=num_running, last_step=last_step)
    plan = by_load().plan(view)
    assert [layer for group in plan.groups for layer in range(group.start, group.end)] == [*range(num_layers)]
    assert by_load().plan(view) == plan


def test_the_policy_makes_more_groups_under_load_and_when_slow() -> None:
    def groups(num_running: int, last_s: float | None) -> int:
        last = None if last_s is None else StepTiming("decode", last_s, 1, 0, 48)
        view = SchedulerView(48, (2048,), num_running=num_running, last_step=last)
        return by_load().plan(view).num_groups

    assert [groups(1, None), groups(1, 0.01), groups(1, 0.5)] == [4, 4, 8]
    assert [groups(20, None), groups(20, 0.5)] == [8, 16]


def test_the_listener_keeps_the_slowest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "slowest.txt"
    listeners = find_listeners([f"listener_slowest_steps:SlowestSteps={path}"])
    assert all(isinstance(one, Listener) for one in listeners._attached)
    durations = [((number * 7) % 31) / 1000 for number in range(31)]
    for number, duration_s in enumerate(durations):
        listeners.emit(step(number, duration_s))
        listeners.emit(CohortFinished(number, float(number), ("a",)))
    assert listeners, "the listener was detached"
    told = [float(line.split()[0]) / 1000 for line in path.read_text().splitlines()]
    assert told == sorted(durations, reverse=True)[:10]
    listeners.close()
    assert path.read_text() in capsys.readouterr().out


def test_the_policy_for_every_step_learns_and_keeps_its_limit() -> None:
    policy: Any = find_policy("policy_every_step:EveryStep", group_tokens=512, num_groups=None)
    policy.begin(ModelSizes(8), (), Start(DeviceRates(1e-10, 1e-11, 1e-4)))
    policy.keep_tbt_limit(0.05)
    load = StepLoad(2, 100, (100,), (0,))
    assert policy.next_layers(PaceView(load, 3, 0.05)).layers == 5, "nothing is known yet"
    for _ in range(3):
        policy.observe(StepLoad(2, 100, (100,), (0,), 8.0), 0.0816)  # 0.1 ms a row and layer
    decision = policy.next_layers(PaceView(load, 0, 0.05))
    assert (decision.layers, decision.fits) == (3, True)
    assert policy.next_layers(PaceView(load, 0, 0.001)).layers == 1
    later: Any = find_policy("policy_every_step:EveryStep", group_tokens=512, num_groups=None)
    later.begin(ModelSizes(8), (), Start(DeviceRates(1e-10, 1e-11, 1e-4), policy.learned()))
    assert later.layer_row_s == policy.layer_row_s


def test_the_policy_by_deadline_lets_the_nearest_one_go_first() -> None:
    policy: Any = find_policy("policy_by_deadline:ByDeadline", group_tokens=512, num_groups=None)
    late, soon, important = SloClass(9.0), SloClass(2.0), SloClass(9.0)
    waiting = (
        Waiting(400, slo=late),
        Waiting(30, waited_s=1.9, slo=soon),
        Waiting(900, slo=important, priority=1),
    )
    view = Snapshot(waiting, Running.of([Decode(100)]), (Flying(500, 3, 8, 0.5, late),))
    assert policy.order(view) == [2, 1, 0]
    assert policy.preempt(view) == [1], "the important one has more to compute"
    assert policy.hold(view) == 0.02
    assert policy.hold(Snapshot(waiting)) == 0, "nothing runs"
    assert policy.hold(Snapshot((Waiting(30, waited_s=1.99, slo=soon),), view.running)) == 0
    limits = SloClass(tbt_s=0.1)
    rows = [
        Decode(100),
        Decode(100, since_token_s=0.01, slo=limits),
        Decode(9, since_token_s=0.07, slo=limits),
    ]
    assert policy.decode_rows(Snapshot(running=Running.of(rows))) == [0, 2]
