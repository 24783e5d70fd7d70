"""Policy `flow-prefill` answers what a slow definition says, prompt by prompt."""

from __future__ import annotations

from functools import cache
from math import inf

from hypothesis import given
from hypothesis import strategies as st

from auto_cases import NUM_LAYERS
from sglang_layered.core.questions import Decode, Flying, Running, SloClass, Snapshot, Waiting
from sglang_layered.policies.flow_prefill import FlowPrefillPolicy
from test_policies import taught

RUNNING = Running.of([Decode(500)] * 3)
LIMITS = st.one_of(st.just(inf), st.floats(0.01, 3.0))
PROMPTS = st.lists(
    st.builds(
        Waiting,
        st.integers(1, 6000),
        st.just(0),
        st.floats(0, 2),
        st.builds(SloClass, LIMITS, st.just(inf)),
        st.integers(-1, 1),
        st.just(0),
    ),
    min_size=1,
    max_size=20,
)
FLIGHTS = st.builds(
    Flying,
    st.integers(100, 8000),
    st.integers(0, NUM_LAYERS - 1),
    st.just(NUM_LAYERS),
    st.floats(0, 2),
    st.builds(SloClass, LIMITS, st.just(inf)),
    st.integers(-1, 1),
    st.just(0),
)


@cache
def learned() -> FlowPrefillPolicy:
    return taught(FlowPrefillPolicy())


def line(policy: FlowPrefillPolicy) -> tuple[float, float]:
    return policy._prompt_line(policy._decode_s(RUNNING))


@given(PROMPTS)
def test_who_is_admitted(prompts: list[Waiting]) -> None:
    base_s, token_s = line(learned())

    def urgency(index: int) -> tuple[int, bool, float]:
        prompt = prompts[index]
        due_s = prompt.slo.ttft_s - prompt.waited_s
        is_late = due_s < base_s + prompt.tokens * token_s
        return -prompt.priority, is_late, -prompt.waited_s if is_late or due_s == inf else due_s

    expected: list[int] = []
    spent_s, left_s = base_s, inf
    for index in sorted(range(len(prompts)), key=urgency):
        spent_s += prompts[index].tokens * token_s
        due_s = prompts[index].slo.ttft_s - prompts[index].waited_s
        if expected and spent_s > left_s:
            break
        expected.append(index)
        if due_s >= spent_s:
            left_s = min(left_s, due_s)
    assert [*learned().order(Snapshot(prompts, RUNNING))] == expected


@given(PROMPTS, FLIGHTS)
def test_who_goes_before_the_cohort(prompts: list[Waiting], flight: Flying) -> None:
    policy = learned()
    base_s, token_s = line(policy)
    flight_due_s = flight.slo.ttft_s - flight.waited_s
    spare_s = flight_due_s - policy._rest_s(flight, base_s, token_s, policy._decode_s(RUNNING))
    expected: list[int] = []
    spent_s, left_s = base_s, inf
    due = [prompt.slo.ttft_s - prompt.waited_s for prompt in prompts]
    for index in sorted(range(len(prompts)), key=lambda each: due[each]):
        after_s = spent_s + prompts[index].tokens * token_s
        if prompts[index].priority < flight.priority or due[index] >= flight_due_s:
            continue  # its turn is after the cohort's
        if after_s > min(due[index], left_s) or 0 <= spare_s < after_s:
            continue  # too late for it, or it would make another one late
        spent_s, left_s = after_s, min(left_s, due[index])
        expected.append(index)
    policy._last_seen = (0, 0, 0)
    view = Snapshot(prompts, RUNNING, [flight], len(prompts), 8192)
    assert policy.preempt(view) == (expected or None)
