"""What a policy is shown of the requests that decode."""

from __future__ import annotations

from asked import everybody, exact, start_decoding
from exact_scheduler import ExactScheduler
from prompts import prompt
from sglang_layered.core.questions import Snapshot
from sglang_layered.upstream.releases import requests
from wishes import Wishes, in_force

__all__ = ["exact"]


def test_a_batch_without_lengths_on_the_host_is_shown_by_its_requests(exact: ExactScheduler) -> None:
    """With drafts and overlap most GPU backends leave `seq_lens_cpu` out, in `resolve_seq_lens_cpu`."""
    start_decoding(exact, 2)
    with in_force(exact.stepped, Wishes(order=everybody)):
        found = exact.stepped.loop.driver.asking
        assert found is not None
        running = exact.scheduler.running_batch
        lengths, running.seq_lens_cpu = running.seq_lens_cpu, None
        try:
            shown = found._running(is_in_flight=True)
        finally:
            running.seq_lens_cpu = lengths
    # Tokens of a step whose results are pending are not among a request's own yet.
    assert shown.context_tokens.tolist() == [req.seqlen for req in running.reqs]


def test_who_has_ended_is_not_shown(exact: ExactScheduler) -> None:
    seen: list[tuple[int, int]] = []
    exact.liveness.most_steps = 100

    def nobody(view: Snapshot) -> list[int]:
        decoding = [req for req in exact.scheduler.running_batch.reqs if not req.finished()]
        seen.append((len(view.running), len(decoding)))
        return []

    rids = [exact.send(prompt(10 + new, new), new) for new in (6, 9, 9, 30)]
    exact.step(3)
    with in_force(exact.stepped, Wishes(order=nobody)):
        exact.send(prompt(20, 5), 3)
        exact.finish(*rids[:3])
        exact.step(2)
    assert all(shown == decoding for shown, decoding in seen) and {1, 3, 4} == {shown for shown, _ in seen}


def test_what_is_known_of_a_request_goes_with_it_to_another_slot(exact: ExactScheduler) -> None:
    [rid] = start_decoding(exact)
    views: list[Snapshot] = []
    policy = Wishes(order=lambda view: views.append(view) or everybody(view))
    with in_force(exact.stepped, policy):
        other = exact.send(prompt(20, 5), 3)
        exact.finish(other)
        slot = requests.pool_row(exact.stepped.reqs[rid])
        exact.pause("retract")
        exact.stepped.resume()
        taken = exact.scheduler.req_to_token_pool.free_slots.pop(
            exact.scheduler.req_to_token_pool.free_slots.index(slot)
        )
        exact.step(4)
        exact.scheduler.req_to_token_pool.free_slots.append(taken)
        assert requests.pool_row(exact.stepped.reqs[rid]) != slot
        exact.finish(exact.send(prompt(20, 6), 3))
    shown = [view.running for view in views if len(view.running) == 1]
    assert all(view.tbt_s[0] == 1e3 for view in shown)
