"""The waiting queue while a cohort is in flight: nobody is admitted, and its policies keep their meaning."""

from __future__ import annotations

import pytest

from harness import SteppedScheduler
from prompts import alone, prompt
from sglang_layered.core.events import CohortAdmitted


def cohorts_after_a_long_one(
    stepped: SteppedScheduler, late: list[tuple[list[int], dict]]
) -> list[tuple[str, ...]]:
    """Requests arrive while a long prompt is in flight; who came into which cohort after it."""
    stepped.send(prompt(10, 1), 150)
    stepped.step(2)
    stepped.send(prompt(512, 2), 2)
    stepped.step(2)
    assert stepped.next_group is not None
    rids = [stepped.send(tokens, 2, **params) for tokens, params in late]
    while stepped.next_group is not None:
        assert len(stepped.scheduler.waiting_queue) == len(late)
        stepped.step()
    stepped.finish(*rids)
    admitted = [event for event in stepped.events if isinstance(event, CohortAdmitted)]
    names = dict(zip(rids, "abcdefgh", strict=False))
    return [tuple(names[rid] for rid in event.prompt_rows) for event in admitted[1:]]


def test_fcfs_admits_in_order_and_together_up_to_the_budget(stepped: SteppedScheduler) -> None:
    late = [(prompt(length, 10 + length), {}) for length in (200, 190, 122, 300)]
    assert cohorts_after_a_long_one(stepped, late) == [("a", "b", "c"), ("d",)]


def test_a_prompt_that_crosses_the_budget_is_cut_at_it(stepped: SteppedScheduler) -> None:
    late = [(prompt(length, 20 + length), {}) for length in (200, 400)]
    assert cohorts_after_a_long_one(stepped, late) == [("a", "b"), ("b",)]


def test_longest_prefix_match_goes_first(stepped: SteppedScheduler) -> None:
    shared = prompt(300, 31)
    alone_output = alone(stepped, [*shared, *prompt(400, 32)], 2)
    stepped.finish(stepped.send(shared, 1))
    late = [(prompt(500, 33), {}), ([*shared, *prompt(400, 32)], {})]
    with stepped.queue_policy("lpm"):
        assert cohorts_after_a_long_one(stepped, late) == [("b", "a"), ("a",)]
    assert [list(req.output_ids) for req in stepped.reqs.values()][-1] == alone_output


@pytest.mark.parametrize(("priorities", "order"), [((0, 5, 1), "bca"), ((2, 2, 2), "abc")])
def test_higher_priority_goes_first(
    stepped: SteppedScheduler, priorities: tuple[int, ...], order: str
) -> None:
    late = [(prompt(500, 40 + rank), {"priority": rank}) for rank in priorities]
    with stepped.queue_policy("fcfs", priority=True):
        cohorts = cohorts_after_a_long_one(stepped, late)
    first_seen = "".join(dict.fromkeys(name for cohort in cohorts for name in cohort))
    assert first_seen == order
