"""Makes what runs layered steps while the server starts, and hands it to the event loop.

SGLang says "ready" before its event loop begins. What is made here is made before: attention backends with
their workspaces, and the CUDA graphs of decode rows.
"""

import logging
from collections.abc import Callable
from typing import Any, TypeVar

from sglang_layered.runner.layered_runner import GroupRunner, LayeredRunner, StageRunner
from sglang_layered.upstream.memory import free_gib, keep_room_for_prompts, sizes_kv_after_graphs
from sglang_layered.upstream.releases import serving

logger = logging.getLogger(__name__)

Runner = TypeVar("Runner", bound=GroupRunner)
LATE = (
    "Layered graphs are captured only now, although the server is ready: SGLang was patched by an older"
    " sglang-layered; reinstall sglang, then run `sglang-layered patch apply`"
)


def make_runner(model_runner: Any) -> None:
    """Make the runner of layered steps, right after SGLang's own captures.

    A model that drafts runs whole, in the worker's own steps.

    Raises:
        UnsupportedError: the model's layers cannot be run in ranges.
    """
    if model_runner.is_draft_worker:
        return
    if model_runner.device == "cpu":
        model_runner.layered_runner = _kind(model_runner)(model_runner)
        return
    free = free_gib(model_runner)
    model_runner.layered_runner = _kind(model_runner)(model_runner)
    left = free_gib(model_runner)
    is_sized_later = sizes_kv_after_graphs(model_runner)
    logger.info(
        "Layered prefill: %.2f GiB for attention backends and graphs, %.2f GiB are left; the KV cache is"
        " sized %s",
        free - left,
        left,
        "now, from what is left" if is_sized_later else "already (--mem-fraction-static)",
    )
    if is_sized_later:
        keep_room_for_prompts(model_runner)


def take_runner(model_runner: Any, make: Callable[[Any], Runner]) -> Runner:
    """The runner made at start, for the loop that asks first; another loop makes its own."""
    made: Runner | None = vars(model_runner).pop("layered_runner", None)
    if made is None:
        logger.warning(LATE)
        made = make(model_runner)
    return made


def _kind(model_runner: Any) -> type[LayeredRunner] | type[StageRunner]:
    return StageRunner if serving.ranks_of_runner(model_runner).pp_size > 1 else LayeredRunner
