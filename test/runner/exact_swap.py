"""Puts the exact model and a loop of its own into the stepped scheduler, and takes them out again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from exact_model import ExactAttention, ExactModel
from exact_scheduler import ExactScheduler
from harness import SteppedScheduler, listen
from left_empty import left_empty
from release_differences import settings_like, unproved_ranges
from sglang_layered.config import LayeredConfig
from sglang_layered.scheduler.loop import LayeredLoop


@contextmanager
def exact_scheduler(stepped: SteppedScheduler, num_layers: int, **flags: Any) -> Iterator[ExactScheduler]:
    """Put an exact model of `num_layers` layers in; afterwards all is as it was, also after a failure.

    `flags` are settings of the loop other than the server's.
    """
    with left_empty(stepped):
        scheduler, runner, loop = stepped.scheduler, stepped.scheduler.tp_worker.model_runner, stepped.loop
        saved = (runner.model, runner.attn_backend, scheduler.result_queue, stepped.num_layers)
        max_total = scheduler.invariant_checker.max_total_num_tokens
        model = ExactModel(num_layers, scheduler.token_to_kv_pool_allocator.size + scheduler.page_size)
        vars(model).update(settings_like(runner.model))
        runner.model = model
        runner.attn_backend = ExactAttention(model, runner.req_to_token_pool)
        runner._get_attention_backend = lambda **_: ExactAttention(model, runner.req_to_token_pool)
        try:
            config = replace(LayeredConfig.from_server_args(scheduler.server_args), **flags)
            with unproved_ranges():
                _attach(stepped, LayeredLoop(scheduler, config))
            listen(stepped.loop, stepped)
            yield ExactScheduler(stepped, model)
        finally:
            stepped.limit_running(scheduler.max_running_requests)
            stepped.change_back()
            runner.model, runner.attn_backend, scheduler.result_queue, stepped.num_layers = saved
            del runner._get_attention_backend
            scheduler.invariant_checker.max_total_num_tokens = max_total
            _attach(stepped, loop)


def _attach(stepped: SteppedScheduler, loop: LayeredLoop) -> None:
    stepped.loop = stepped.scheduler.layered_loop = loop
    stepped.num_layers = loop.stages.num_layers
