"""Progress of a cohort, and the ledger of half-filled KV slots."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sglang_layered.core.cohort import Cohort
from sglang_layered.core.ledger import GroupKVLedger
from sglang_layered.core.plan import LayerGroup, LayerGroupPlan
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
    cohort = Cohort(LayerGroupPlan.even(num_layers, data.draw(st.integers(1, num_layers))), ("a",))
    for _ in range(data.draw(st.integers(0, cohort.plan.num_groups - 1))):
        cohort = cohort.advance()
    merged = cohort.with_rest_at_once()
    assert merged.is_last_group
    assert merged.group == LayerGroup(cohort.group.start, num_layers)
    assert (merged.request_ids, merged.next_group) == (cohort.request_ids, cohort.next_group)
    assert merged.with_rest_at_once() == merged
    assert merged.advance().is_done


class LedgerMachine(RuleBasedStateMachine):
    """The ledger against a dictionary of sets of filled layers."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = GroupKVLedger(NUM_LAYERS)
        self.filled: dict[str, set[int]] = {}
        self.slots: dict[str, int] = {}

    @rule(name=st.sampled_from("abcd"), num_slots=st.integers(1, 9))
    def admit(self, name: str, num_slots: int) -> None:
        if name in self.filled:
            with pytest.raises(InvariantError, match="twice"):
                self.ledger.admit(name, range(num_slots))
            return
        self.ledger.admit(name, range(num_slots))
        self.filled[name], self.slots[name] = set(), num_slots

    @rule(name=st.sampled_from("abcd"), start=st.integers(0, NUM_LAYERS), length=st.integers(1, 3))
    def run_group(self, name: str, start: int, length: int) -> None:
        group = LayerGroup(start, start + length)
        layers = set(range(start, start + length))
        fits = name in self.filled and start == len(self.filled[name]) and start + length <= NUM_LAYERS
        if not fits:
            with pytest.raises(InvariantError):
                self.ledger.group_done([name], group)
            return
        self.ledger.group_done([name], group)
        self.filled[name] |= layers

    @rule(name=st.sampled_from("abcd"))
    def complete(self, name: str) -> None:
        if name in self.filled and len(self.filled[name]) < NUM_LAYERS:
            with pytest.raises(InvariantError, match="only up to"):
                self.ledger.complete([name])
        elif name in self.filled:
            self.ledger.complete([name])
            del self.filled[name], self.slots[name]

    @precondition(lambda self: self.filled)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.filled)))
        self.ledger.drop([name])
        del self.filled[name], self.slots[name]

    @invariant()
    def agrees(self) -> None:
        assert {entry.request_id: entry.filled_layers for entry in self.ledger} == {
            name: len(layers) for name, layers in self.filled.items()
        }
        partial = [name for name, layers in self.filled.items() if len(layers) < NUM_LAYERS]
        assert self.ledger.num_partial_slots == sum(self.slots[name] for name in partial)
        for name in "abcd":
            assert self.ledger.may_enter_prefix_cache(name) == (name not in partial)


TestLedger = LedgerMachine.TestCase
