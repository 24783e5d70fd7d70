"""Any sequence of operations on the pipeline loop; ExactPipeline checks what must hold after each tick.

The operations are those of test_scheduler_properties.py, and so is their number.
"""

from __future__ import annotations

from functools import partial

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, run_state_machine_as_test

from exact_pipeline import exact_pipeline
from harness import SteppedScheduler
from scheduler_machine import BASES, SchedulerMachine
from test_scheduler_properties import CASES, DEFAULT, silence

__all__ = ["silence"]


class PipelineMachine(SchedulerMachine):
    """Clients, an operator and shortages of KV slots against one pipeline, each time of other stages."""

    @initialize(
        cuts=st.sampled_from([(0, 3, 6, 8), (0, 4, 7), (0, 4, 7), (0, 1, 2)]),
        group_tokens=st.sampled_from([1, 1, 16, 100]),
    )
    def start(self, cuts: tuple[int, ...], group_tokens: int) -> None:
        self.swap = exact_pipeline(self.stepped, cuts, **self.flags)
        self.exact = self.swap.__enter__()
        assert self.stepped.change({"layered_group_tokens": group_tokens})
        self.exact.conversations.open()

    def send(self, prompts: list[list[int]], new: int, company: bool, steps: int) -> None:
        """Send prompts; `company` makes sure that something decodes beside them, in some micro-batch."""
        if company and not any(batch.reqs for batch in self.exact.scheduler.running_mbs):
            self.exact.send(BASES[0][:10], 40)
            self.exact.step(4)
        super().send(prompts, new, False, steps)


@pytest.mark.timeout(3600)
@pytest.mark.usefixtures("silence")
@pytest.mark.parametrize(("flags", "priorities"), CASES.values(), ids=CASES)
def test_any_sequence_of_operations_on_a_pipeline(
    stepped: SteppedScheduler, flags: dict[str, int], priorities: tuple[int | None, ...]
) -> None:
    if stepped.scheduler.enable_overlap:
        pytest.skip(reason="SGLang's pipeline loop has no overlap scheduler: run with --without-overlap")
    is_default = settings.get_current_profile_name() != "long"
    by_priority = priorities != (None,)
    with stepped.queue_policy("fcfs", priority=by_priority, preempts=by_priority):
        run_state_machine_as_test(
            partial(PipelineMachine, stepped, flags, priorities),
            settings=DEFAULT if is_default else settings.get_profile("long"),
        )
