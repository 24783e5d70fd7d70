"""Expert ids that requests want back, gathered over the groups of a cohort, are those of stock forwards."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from sglang.srt.mem_cache.pool_host import common
from sglang.srt.state_capturer import routed_experts
from sglang.srt.state_capturer.base import BaseHostCache
from sglang.srt.state_capturer.routed_experts import RoutedExpertsCapturer, set_global_experts_capturer

from harness import SteppedScheduler, listen
from prompts import prompt
from sglang_layered.config import LayeredConfig
from sglang_layered.core.choice import StrategyChoice
from sglang_layered.scheduler.loop import LayeredLoop
from sglang_layered.upstream.routed_experts import ExpertIds

TOP_K = 4  # of the tiny model
NOTHING = -5  # no expert has this id: what is left of it was never written
KNOWN: dict[tuple[tuple[int, ...], int], tuple[list[int], torch.Tensor]] = {}  # what the oracle has said


class Beside:
    """Stands for a second stream."""

    def fork(self) -> None:
        pass

    @contextmanager
    def branch(self) -> Iterator[None]:
        yield


class Returned:
    """Sends requests that want their expert ids back, and knows what SGLang's own forwards note of them."""

    def __init__(self, stepped: SteppedScheduler, ids: ExpertIds) -> None:
        self.stepped, self.ids = stepped, ids
        self.tokens: dict[str, list[int]] = {}

    def send(self, tokens: Sequence[int], num_outputs: int, start: int = 0) -> str:
        rid = self.stepped.send(
            tokens, num_outputs, return_routed_experts=True, routed_experts_start_len=start
        )
        self.tokens[rid] = list(tokens)
        return rid

    def clear(self) -> None:
        """Nothing is left of what was noted before."""
        self.ids.stock.host_cache.buffer.fill_(NOTHING)
        self.ids.stock.device_cache.buffer.fill_(NOTHING)

    def by_stock(self, tokens: Sequence[int], num_outputs: int) -> tuple[list[int], torch.Tensor]:
        """Oracle: the request alone, in SGLang's forwards, noted by SGLang's own capturer.

        Each result is processed before the next launch: SGLang's capturer hands out the buffer that the next
        forward writes.
        """
        key = (tuple(tokens), num_outputs)
        if key not in KNOWN:
            KNOWN[key] = self._by_stock(tokens, num_outputs)
        return KNOWN[key]

    def _by_stock(self, tokens: Sequence[int], num_outputs: int) -> tuple[list[int], torch.Tensor]:
        set_global_experts_capturer(self.ids.stock)
        rid = self.send(tokens, num_outputs)
        while not self.stepped.reqs[rid].finished():
            self.stepped.step()
            self.stepped.loop.results.process_all()
        set_global_experts_capturer(self.ids)
        req = self.stepped.reqs[rid]
        answer, noted = list(req.output_ids), req.routed_experts.clone()
        self.stepped.drain()
        self.clear()
        return answer, noted

    def all_by_stock(self, asked: dict[str, int]) -> dict[str, tuple[list[int], torch.Tensor]]:
        """By request; `asked` has how many tokens each should put out. Nothing may run."""
        wanted = {rid: self.tokens[rid] for rid in asked}
        return {rid: self.by_stock(tokens, asked[rid]) for rid, tokens in wanted.items()}

    def assert_as_stock(self, asked: dict[str, int], start: int = 0) -> None:
        """Finish them; tokens and ids are those of each request alone."""
        self.stepped.finish(*asked)
        got = {rid: self.stepped.reqs[rid] for rid in asked}
        self.stepped.drain()
        for rid, (answer, noted) in self.all_by_stock(asked).items():
            assert list(got[rid].output_ids) == answer
            assert noted.shape == (len(self.tokens[rid]) + asked[rid] - 1, self.stepped.num_layers, TOP_K)
            assert not (noted == NOTHING).any()
            assert torch.equal(got[rid].routed_experts, noted[start:]), self.differences(
                got[rid].routed_experts, noted[start:]
            )

    @staticmethod
    def differences(got: torch.Tensor, noted: torch.Tensor) -> str:
        if got.shape != noted.shape:
            return f"{tuple(got.shape)}, {tuple(noted.shape)} expected"
        rows, layers = (got != noted).any(dim=-1).nonzero(as_tuple=True)
        return f"rows {sorted(set(rows.tolist()))} differ in layers {sorted(set(layers.tolist()))}"


def make_capturer(scheduler: Any, patch: pytest.MonkeyPatch) -> RoutedExpertsCapturer:
    """SGLang's capturer, as with --enable-return-routed-experts; without CUDA nothing is pinned."""
    zeros, init = torch.zeros, BaseHostCache.__init__

    def made(cache: Any, *sizes: Any, **named: Any) -> None:
        with pytest.MonkeyPatch.context() as inner:
            if not torch.cuda.is_available():
                inner.setattr(torch, "zeros", lambda *size, pin_memory, **kinds: zeros(*size, **kinds))
                inner.setattr(common, "_cuda_host_register", lambda *_: None)
            init(cache, *sizes, **named)

    patch.setattr(BaseHostCache, "__init__", made)
    runner = scheduler.tp_worker.model_runner
    return RoutedExpertsCapturer(
        runner.model_config,
        num_tokens=runner.max_total_num_tokens + runner.page_size,
        max_running_requests=runner.max_running_requests,
        num_fused_shared_experts=0,
        device=runner.device,
    )


@pytest.fixture
def returned(stepped: SteppedScheduler, monkeypatch: pytest.MonkeyPatch) -> Iterator[Returned]:
    """The shared scheduler as if started with the flag: its runner made after the capturer."""
    scheduler, loop = stepped.scheduler, stepped.loop
    saved, queue = routed_experts.get_global_experts_capturer(), scheduler.result_queue
    set_global_experts_capturer(make_capturer(scheduler, monkeypatch))
    stepped.loop = scheduler.layered_loop = LayeredLoop(
        scheduler, LayeredConfig.from_server_args(scheduler.server_args)
    )
    listen(stepped.loop, stepped)
    ids = routed_experts.get_global_experts_capturer()
    assert isinstance(ids, ExpertIds)
    made = Returned(stepped, ids)
    made.clear()
    try:
        yield made
        stepped.drain()
    finally:
        stepped.change_back()
        stepped.loop = scheduler.layered_loop = loop
        scheduler.result_queue = queue
        set_global_experts_capturer(saved)


def run_in(stepped: SteppedScheduler, strategy: str) -> None:
    execution = stepped.loop._execution
    execution.choice, execution._beside = StrategyChoice(strategy), Beside()  # type: ignore[assignment]


@pytest.mark.parametrize("num_groups", [0, 3, 8], ids=["by_tokens", "uneven", "one_layer_a_group"])
@pytest.mark.parametrize("strategy", ["fused", "sequential", "concurrent"])
def test_ids_of_prompts_and_of_rows_that_decode_beside_are_stocks(
    returned: Returned, strategy: str, num_groups: int
) -> None:
    stepped = returned.stepped
    assert stepped.change({"layered_num_groups": num_groups})
    run_in(stepped, strategy)
    asked = {returned.send(prompt(15, 1), 40): 40, returned.send(prompt(20, 2), 6): 6}
    stepped.step(2)
    # One that ends while others are in flight, two in a cohort, and one in three chunks. In none are two
    # experts of a row as good as equal: their order would hang on the last bit of what attention gives.
    asked |= {returned.send(prompt(length, length + 21), 5): 5 for length in (300, 70, 1200)}
    returned.assert_as_stock(asked)


@pytest.mark.parametrize("strategy", ["fused", "sequential"])
def test_strategies_may_change_between_groups(returned: Returned, strategy: str) -> None:
    stepped, others = returned.stepped, itertools.cycle(["sequential", "fused", "concurrent"])
    asked = {returned.send(prompt(10, 6), 20): 20}
    stepped.step(2)
    asked[returned.send(prompt(320, 5), 3)] = 3
    stepped.step()
    while stepped.next_group is not None:
        run_in(stepped, next(others))
        stepped.step()
    run_in(stepped, strategy)
    returned.assert_as_stock(asked)


def test_a_cached_prefix_has_the_ids_of_the_request_that_computed_it(returned: Returned) -> None:
    stepped, prefix = returned.stepped, prompt(260, 46)  # with 7 two experts of a row are equal to 2e-7
    asked = {returned.send(prompt(12, 8), 60): 60}
    stepped.step(2)
    first = returned.send(prefix, 2)
    stepped.finish(first)
    asked[returned.send([*prefix, *prompt(90, 9)], 4)] = 4
    stepped.step_until(lambda: stepped.next_group is not None)
    assert stepped.loop.inflight is not None
    assert stepped.loop.inflight.num_prompt_tokens < 100
    returned.assert_as_stock(asked | {first: 2})


def test_ids_from_a_position_on(returned: Returned) -> None:
    returned.stepped.send(prompt(12, 8), 30)
    returned.stepped.step(2)
    returned.assert_as_stock({returned.send(prompt(150, 9), 4, start=40): 4}, start=40)


@pytest.mark.parametrize("group", [1, 2, 4])
def test_the_rows_of_a_request_that_leaves_take_no_ids_along(returned: Returned, group: int) -> None:
    stepped = returned.stepped
    asked = {returned.send(prompt(10, 1), 30): 30}
    stepped.step(2)
    leaving = returned.send(prompt(200, 2), 4)
    asked[returned.send(prompt(150, 3), 4)] = 4
    stepped.step_until(lambda: stepped.next_group == group)
    stepped.abort(leaving)
    returned.assert_as_stock(asked)


@pytest.mark.parametrize("group", [1, 2, 4])
@pytest.mark.parametrize("how", ["abort", "retract"])
def test_a_dropped_cohorts_prompt_that_comes_again_has_its_own_ids(
    returned: Returned, group: int, how: str
) -> None:
    stepped, tokens = returned.stepped, prompt(330, 4)
    asked = {returned.send(prompt(10, 1), 40): 40}
    stepped.step(2)
    late = returned.send(tokens, 4)
    stepped.step_until(lambda: stepped.next_group == group)
    if how == "abort":
        stepped.abort(late)
        stepped.step()
        late = returned.send(tokens, 4)
    else:
        stepped.pause("retract")
        stepped.resume()
    returned.assert_as_stock(asked | {late: 4})


def test_parked_ids_are_counted_with_the_parked_rows_and_go_with_them(returned: Returned) -> None:
    stepped = returned.stepped
    stepped.send(prompt(10, 1), 40)
    stepped.step(2)
    rid = returned.send(prompt(330, 4), 4)
    stepped.step_until(lambda: stepped.next_group == 2)
    inflight = stepped.loop.inflight
    assert inflight is not None and inflight.parked is not None
    assert inflight.parked.tensors["layered_expert_ids"].shape == (330, stepped.num_layers, TOP_K)
    stepped.finish(rid)


def test_without_the_gathering_ids_are_wrong(returned: Returned) -> None:
    """What the tests above would find were SGLang's capturer alone in its place."""
    stepped = returned.stepped
    stepped.loop._execution._runner._ids = None
    set_global_experts_capturer(returned.ids.stock)
    stepped.send(prompt(10, 1), 40)
    stepped.step(2)
    with pytest.raises(AssertionError, match=r"rows .* differ in layers"):
        returned.assert_as_stock({returned.send(prompt(330, 4), 4): 4})
