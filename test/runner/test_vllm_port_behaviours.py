"""What the author's vLLM port tests at the scheduler, held here too, each test named after the behaviour.

Every `exact.step` also checks that each layer meets each row once, that decodes advance, and each slot read.

Tested elsewhere: a drop at each group (test_layered_steps), wrong settings (test_server_flags), arithmetic of
layer groups (unit/test_plan), equality of real models (e2e/test_equality), pipeline ranks
(test_pipeline_steps), decode graphs (test_decode_graphs). Not applicable: a late prompt that overtakes a
cohort in flight, which the port has not either.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator

import pytest
from sglang.srt.mem_cache.base_prefix_cache import MatchPrefixParams
from sglang.srt.mem_cache.radix_cache import RadixKey

from exact_scheduler import ExactScheduler
from exact_swap import exact_scheduler
from harness import SteppedScheduler
from prompts import prompt
from release_differences import length_of

DEPTHS_AND_GROUPS = [(1, 1), (4, 2), (4, 4), (7, 1), (7, 2), (7, 3), (7, 7)]


@pytest.fixture
def exact(stepped: SteppedScheduler) -> Iterator[ExactScheduler]:
    """Seven layers, one layer a group whatever the prompt."""
    with exact_scheduler(stepped, 7) as exact:
        assert stepped.change({"layered_num_groups": 7})
        yield exact
        exact.settle()


def decode_beside(exact: ExactScheduler, *num_tokens: int) -> list[str]:
    """Requests that decode for so many tokens."""
    rids = [exact.send(prompt(10, 900 + index), count) for index, count in enumerate(num_tokens)]
    exact.step(2)
    return rids


def outputs(exact: ExactScheduler, *rids: str) -> list[int]:
    return [exact.launched(rid) for rid in rids]


@pytest.mark.parametrize(("num_layers", "num_groups"), DEPTHS_AND_GROUPS)
def test_advances_through_each_group(stepped: SteppedScheduler, num_layers: int, num_groups: int) -> None:
    """The cohort stays whole, its tokens come at the end only; the decode beside it has one every step."""
    with exact_scheduler(stepped, num_layers) as exact:
        assert stepped.change({"layered_num_groups": num_groups})
        [running] = decode_beside(exact, 30)
        start = exact.launched(running)
        pair = [exact.send(prompt(length, length), 3) for length in (200, 90)]
        for group in range(1, num_groups):
            exact.step()
            assert (exact.cohort, stepped.next_group) == (tuple(pair), group)
            assert outputs(exact, *pair, running) == [0, 0, start + group]
            assert not any(stepped.reqs[rid].output_ids for rid in pair)
        exact.step()
        assert (exact.cohort, outputs(exact, *pair)) == ((), [1, 1])
        exact.step()
        assert outputs(exact, *pair, running) == [2, 2, start + num_groups + 1]
        exact.settle()


@pytest.mark.parametrize("num_tokens", [1, 2, 300, 1200])
@pytest.mark.parametrize(("num_layers", "num_groups"), DEPTHS_AND_GROUPS)
def test_matches_full_depth(
    stepped: SteppedScheduler, num_layers: int, num_groups: int, num_tokens: int
) -> None:
    """Exactly, with groups of unequal size, a prompt of one token, and one in three chunks."""
    with exact_scheduler(stepped, num_layers) as exact:
        assert stepped.change({"layered_num_groups": num_groups})
        decode_beside(exact, 60)
        exact.send(prompt(num_tokens, num_tokens), 5)
        exact.settle()


@pytest.mark.parametrize("steps", [1, 2, 3, 6])
@pytest.mark.parametrize("victim", [0, 1, 2])
def test_abort_preserves_other_batch_members(exact: ExactScheduler, steps: int, victim: int) -> None:
    decode_beside(exact, 30)
    members = [exact.send(prompt(40 + index, 910 + index), 4) for index in range(3)]
    exact.step(steps)
    exact.abort(members[victim])
    assert (exact.cohort, exact.stepped.next_group) == (tuple(members), steps)
    exact.step(7 - steps)
    survivors = [rid for rid in members if rid != members[victim]]
    assert outputs(exact, *survivors) == [1, 1]
    exact.step()
    assert outputs(exact, *survivors) == [2, 2]
    assert len(exact.stepped.reqs[members[victim]].output_ids) <= 1


def test_keeps_new_arrivals_out(exact: ExactScheduler) -> None:
    decode_beside(exact, 40)
    first = exact.send(prompt(100, 920), 4)
    exact.step(2)
    second = exact.send(prompt(5, 921), 4)
    for _ in range(5):
        assert exact.cohort == (first,)
        exact.step()
    exact.step()
    assert exact.cohort == (second,)


def test_batches_cached_decode_with_new_prefills(exact: ExactScheduler) -> None:
    """Beyond the port: the decodes that ride along come and go while the cohort is in flight."""
    running = decode_beside(exact, 4, 6, 30)
    late = exact.send(prompt(100, 930), 4)
    exact.step(6)
    assert exact.cohort == (late,)
    assert [rid in exact.live for rid in running] == [False, False, True]


def test_keeps_partial_kv_out_of_prefix_cache(exact: ExactScheduler) -> None:
    tokens = prompt(100, 940)
    decode_beside(exact, 40)
    exact.send(tokens, 4)

    def num_cached() -> int:
        key = RadixKey(array("q", tokens))
        return length_of(exact.scheduler.tree_cache.match_prefix(MatchPrefixParams(key=key)))

    for _ in range(6):
        exact.step()
        assert exact.cohort and num_cached() == 0
    exact.step(2)
    assert num_cached() == 100
    twin = exact.send(tokens, 4)
    exact.step()
    assert exact.stepped.reqs[twin].cached_tokens == 99


@pytest.mark.parametrize("group", range(1, 7))
def test_pause_preserves_local_group(exact: ExactScheduler, group: int) -> None:
    decode_beside(exact, 40)
    rid = exact.send(prompt(100, 950), 4)
    exact.step(group)
    exact.pause("in_place")
    exact.step(3)
    assert (exact.cohort, exact.stepped.next_group) == ((rid,), group)
    exact.stepped.resume()
    exact.step(7 - group)
    assert outputs(exact, rid) == [1]


def test_commits_each_token_chunk_once(exact: ExactScheduler) -> None:
    assert exact.stepped.change({"layered_cohort_tokens": 16})
    decode_beside(exact, 40)
    rid = exact.send(prompt(48, 960), 4)
    chunks = []
    for _ in range(21):
        exact.step()
        chunks += [(rows.start, rows.end) for rows in exact.model.log.done if rows.rid == rid]
    assert chunks == [(0, 16), (16, 32), (32, 48)]


def test_batches_full_and_partial_prompts(exact: ExactScheduler) -> None:
    assert exact.stepped.change({"layered_cohort_tokens": 100})
    decode_beside(exact, 40)
    whole, cut = exact.send(prompt(60, 970), 4), exact.send(prompt(70, 971), 4)
    exact.step()
    assert (exact.cohort, list(exact.stepped.loop.inflight.batch.extend_lens)) == ((whole, cut), [60, 40])
    exact.step(7)
    assert (exact.cohort, list(exact.stepped.loop.inflight.batch.extend_lens)) == ((cut,), [30])
    assert outputs(exact, whole, cut) == [2, 0]


@pytest.mark.parametrize("num_shared", [1, 63, 150, 199])
def test_layered_after_a_partial_prefix_hit(exact: ExactScheduler, num_shared: int) -> None:
    tokens = prompt(200, 980)
    exact.finish(exact.send(tokens, 2))
    decode_beside(exact, 40)
    rid = exact.send(tokens[:num_shared] + prompt(30, 981), 4)
    exact.step()
    assert exact.stepped.loop.inflight.num_prompt_tokens == 30
    exact.finish(rid)


@pytest.mark.parametrize("group", range(1, 7))
def test_preempted_in_flight_starts_again(exact: ExactScheduler, group: int) -> None:
    """The port cannot preempt a cohort: here it gives its slots to the last decode, and loses nothing."""
    [running] = decode_beside(exact, 40)
    late = exact.send(prompt(100, 990), 4)
    exact.step(group)
    exact.take_slots(exact.scheduler.token_to_kv_pool_allocator.size)
    exact.step()
    assert not exact.cohort and exact.stepped.reqs[late].is_retracted
    exact.give_slots()
    exact.finish(running, late)
