"""A policy says who decodes: some requests sit a step out, few in a row, and no token changes."""

from __future__ import annotations

from typing import Any

import pytest

from asked import answers, exact, start_decoding
from exact_scheduler import ExactScheduler
from harness import SteppedScheduler
from prompts import prompt
from sglang_layered.core import bounds
from wishes import Wishes, in_force

__all__ = ["exact"]


def sits_out(*indices: int) -> Any:
    return lambda view: [index for index in range(len(view.running)) if index not in indices]


def test_requests_sit_steps_out_but_few_in_a_row(exact: ExactScheduler) -> None:
    exact.most_sat_out = bounds.MOST_SAT_OUT
    policy = Wishes(decode_rows=sits_out(0, 2))
    rids = start_decoding(exact, 3)
    with in_force(exact.stepped, policy):
        before = [exact.launched(rid) for rid in rids]
        exact.finish(exact.send(prompt(300, 5), 1))
        counts = [exact.launched(rid) - had for rid, had in zip(rids, before, strict=True)]
        assert counts[0] == counts[2] < counts[1]
        views = policy.views["decode_rows"]
        assert [int(view.running.sat_out[0]) for view in views] == [0, 1, 2, 3, 4, 0, 1]
        assert all(int(view.running.sat_out[1]) == 0 and not view.waiting for view in views)
        exact.finish(*rids)
    assert answers(exact, "decode_rows") == [(rids[0], rids[2])]


def test_an_empty_answer_means_all(exact: ExactScheduler) -> None:
    rids = start_decoding(exact, 2)
    with in_force(exact.stepped, Wishes(decode_rows=lambda view: [])):
        exact.finish(exact.send(prompt(300, 5), 1), *rids)


@pytest.mark.parametrize("mode", ["retract", "in_place"])
def test_a_pause_while_some_sit_out(exact: ExactScheduler, mode: str) -> None:
    exact.most_sat_out = bounds.MOST_SAT_OUT
    start_decoding(exact, 3)
    with in_force(exact.stepped, Wishes(decode_rows=sits_out(1))):
        exact.send(prompt(300, 5), 3)
        exact.step(2)
        exact.pause(mode)
        exact.stepped.resume()
        exact.step(3)


def test_who_sits_out_and_is_aborted_ends_with_the_next_step(exact: ExactScheduler) -> None:
    exact.most_sat_out = bounds.MOST_SAT_OUT
    rids = start_decoding(exact, 3)
    with in_force(exact.stepped, Wishes(decode_rows=sits_out(1))):
        exact.send(prompt(300, 5), 3)
        exact.step(2)
        exact.abort(rids[1])
        exact.step(3)
        assert rids[1] not in exact.live


def test_a_full_pool_while_some_sit_out(exact: ExactScheduler) -> None:
    exact.most_sat_out = bounds.MOST_SAT_OUT
    start_decoding(exact, 4)
    with in_force(exact.stepped, Wishes(decode_rows=sits_out(0, 1, 2))):
        exact.send(prompt(300, 5), 3)
        exact.step(2)
        exact.take_slots(3000)
        exact.step(4)
        exact.give_slots()


def test_with_penalties_all_decode(stepped: SteppedScheduler) -> None:
    """SGLang adds up the tokens of whole batches."""
    policy = Wishes(decode_rows=sits_out(0))
    rids = [stepped.send(prompt(10, seed), 30, sampling={"presence_penalty": 0.5}) for seed in (1, 2)]
    stepped.step(3)
    with in_force(stepped, policy):
        stepped.finish(stepped.send(prompt(300, 5), 1), *rids)
    assert not policy.views["decode_rows"]


def test_tokens_of_a_real_model_do_not_depend_on_who_sits_out(stepped: SteppedScheduler) -> None:
    sizes = [(10, 30), (12, 30), (300, 5), (200, 7)]
    prompts = [prompt(length, 70 + length) for length, _ in sizes]
    expected = [
        stepped.finish(stepped.send(each, new))[0] for each, (_, new) in zip(prompts, sizes, strict=True)
    ]
    stepped.drain()
    turns = iter(range(10**6))
    policy = Wishes(decode_rows=lambda view: sits_out(next(turns) % len(view.running))(view))
    with in_force(stepped, policy):
        rids = []
        for tokens, (_, new) in zip(prompts, sizes, strict=True):
            rids.append(stepped.send(tokens, new))
            stepped.step(3)
        assert stepped.finish(*rids) == expected
    assert len(policy.views["decode_rows"]) > 5
