"""Progress of a cohort, and the ledger of half-filled KV slots."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from sglang_layered.core.cohort import Cohort
from sglang_layered.core.ledger import GroupKVLedger
from sglang_layered.core.plan import LayerGroup, LayerGroupPlan
from sglang_layered.core.stages import PipelineStages
from sglang_layered.errors import CohortError, InvariantError

NUM_LAYERS = 6


@given(num_layers=st.integers(1, 40), data=st.data())
def test_a_cohort_meets_every_layer_once(num_layers: int, data: st.DataObject) -> None:
    plan = LayerGroupPlan.even(num_layers, data.draw(st.integers(1, num_layers)))
    cohort, met = Cohort(plan, ("a", "b")), []
    while not cohort.is_done:
        assert cohort.is_last_group == (cohort.group.end == num_layers)
        met += range(cohort.group.start, cohort.group.end)
        cohort = cohort.advance()
    assert met == list(range(num_layers))


def test_a_cohort_refuses_what_its_state_forbids() -> None:
    plan = LayerGroupPlan.even(2, 2)
    done = Cohort(plan, ("a",), next_group=2)
    with pytest.raises(CohortError, match="all its groups"):
        done.advance()
    with pytest.raises(CohortError, match="all its groups"):
        _ = done.group
    for bad in ((), ("a", "a")):
        with pytest.raises(CohortError):
            Cohort(plan, bad)
    with pytest.raises(CohortError, match="outside"):
        Cohort(plan, ("a",), next_group=3)


@given(num_layers=st.integers(1, 40), data=st.data())
def test_a_cohort_with_its_rest_at_once_has_one_group_to_go(num_layers: int, data: st.DataObject) -> None:
    plan = LayerGroupPlan.even(num_layers, data.draw(st.integers(1, num_layers)))
    stages = PipelineStages((0, num_layers))
    index = data.draw(st.integers(0, plan.num_groups - 1))
    merged = stages.rest_at_once(plan, index)
    assert merged.groups == (*plan.groups[:index], LayerGroup(plan.groups[index].start, num_layers))
    assert stages.rest_at_once(merged, index) == merged


class LedgerMachine(RuleBasedStateMachine):
    """The ledger against a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = GroupKVLedger()
        self.slots: dict[str, range] = {}

    @rule(name=st.sampled_from("abcd"), num_slots=st.integers(1, 9))
    def admit(self, name: str, num_slots: int) -> None:
        if name in self.slots:
            with pytest.raises(InvariantError, match="twice"):
                self.ledger.admit(name, range(num_slots))
            return
        self.slots[name] = range(num_slots)
        self.ledger.admit(name, self.slots[name])

    @rule(name=st.sampled_from("abcd"))
    def complete(self, name: str) -> None:
        if name not in self.slots:
            with pytest.raises(InvariantError, match="not in flight"):
                self.ledger.complete([name])
            return
        self.ledger.complete([name])
        del self.slots[name]

    @rule(names=st.lists(st.sampled_from("abcd"), unique=True))
    def release(self, names: list[str]) -> None:
        self.ledger.released(names)
        for name in names:
            self.slots.pop(name, None)

    @invariant()
    def agrees(self) -> None:
        assert dict(self.ledger) == self.slots
        assert len(self.ledger) == len(self.slots)
        assert all(self.ledger.may_be_kept(name) == (name not in self.slots) for name in "abcd")


TestLedger = LedgerMachine.TestCase
