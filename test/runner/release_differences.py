"""What tests must know of differences between releases of SGLang, all in one place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt import distributed, utils
from sglang.srt.arg_groups import overrides
from sglang.srt.model_executor.model_runner_components import kv_pool_runtime
from sglang.srt.runtime_context import get_parallel
from sglang.srt.server_args import ServerArgs

from sglang_layered.upstream.releases import arguments, boundaries, serving

get_pp_group = getattr(distributed, "get_pp_group", None)
MARKS_EMPTY_ONES_FULL = get_pp_group is not None
"""Whether SGLang marks a running batch full that is empty, where the next prompt has no room."""


@contextmanager
def unproved_ranges() -> Iterator[None]:
    """No model made inside is looked at: the exact one knows nobody but the requests that it expects."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(boundaries, "PROVES_STAGES", False)
        yield


def settings_like(served: Any) -> dict[str, Any]:
    """What a runner of 0.5.23 asks its model for at each forward, as the served model answers."""
    name = "shared_experts_config"
    return {name: getattr(served, name)} if hasattr(served, name) else {}


def with_native_kernels(patch: pytest.MonkeyPatch) -> None:
    """As on a CPU with Intel's AMX."""
    for module in (utils, utils.common, overrides):
        if hasattr(module, "cpu_has_amx_support"):
            patch.setattr(module, "cpu_has_amx_support", lambda: True)


def _asks_group(
    self: Any, input_ids: Any, positions: Any, batch: Any, pp_proxy_tensors: Any = None
) -> tuple[bool, bool]:
    return get_pp_group().is_first_rank, self.pp_group.is_last_rank


def _asks_context(
    self: Any, input_ids: Any, positions: Any, batch: Any, pp_proxy_tensors: Any = None
) -> tuple[bool, bool]:
    return get_parallel().pp_group.is_first_rank, self.pp_group.is_last_rank


asks_the_process = _asks_context if get_pp_group is None else _asks_group
"""A model's forward: whether the process's pipeline group has the first layer, and its own the last."""

OF_0_5_23 = pytest.mark.skipif(arguments.IS_ONE_CLASS, reason="SGLang 0.5.17 has no such flag or value")
KV_SIZED_LATE = pytest.mark.skipif(
    not hasattr(kv_pool_runtime, "get_world_group"),
    reason="SGLang's own sizing is fed by hand here, with what it reads in 0.5.17",
)


def keep_more(slot: Any, req: Any, num_tokens: int) -> None:
    """Let a session's slot say that it keeps so many tokens more of its turn in flight."""
    if slot.kv is req.kv:
        req.prefix_len += num_tokens
    else:
        slot.kv.kv_allocated_len += num_tokens


@contextmanager
def in_tree(tree_cache: Any, slot: int) -> Iterator[None]:
    """Inside, the prefix tree holds this KV slot."""
    if hasattr(tree_cache, "claim_kv_row"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tree_cache, "all_values_flatten", lambda: torch.tensor([slot]))
            yield
        return
    node = next(iter(tree_cache.inner.root_node.children.values()))
    value, node.value = node.value, node.value.new_tensor([slot, *node.value[1:].tolist()])
    yield
    node.value = value


def ways_to_keep(tree_cache: Any, req: Any) -> list[Callable[[], Any]]:
    """All by which SGLang keeps KV of a turn of a streaming session beyond it."""
    if hasattr(tree_cache, "claim_kv_row"):
        return [
            lambda: tree_cache.checkpoint(req, up_to=req.extend_end),
            lambda: tree_cache.claim_kv_row(req),
        ]
    return [
        lambda: tree_cache.cache_unfinished_req(req),
        lambda: tree_cache.cache_finished_req(req, is_insert=True),
        lambda: tree_cache.cache_finished_req(req, is_insert=False),  # its session would save it all the same
    ]


def embeddings_of_images() -> Any:
    """SGLang's cache of what its encoder has made of images."""
    module = "mm_utils" if arguments.IS_ONE_CLASS else "mm_schedule"
    return import_module(f"sglang.srt.managers.{module}").embedding_cache


def length_of(match: Any) -> int:
    """Tokens of a prefix that was found."""
    return int(match.device_prefix_len) if hasattr(match, "device_prefix_len") else len(match.device_indices)


def in_row(row: int | None) -> dict[str, Any]:
    """What of a request says its row in the pool of requests."""
    return {"req_pool_idx": row, "kv": SimpleNamespace(req_pool_idx=row)}


@pytest.fixture
def ranks_of_stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scheduler that stands in says its ranks itself, as that of 0.5.17."""
    monkeypatch.setattr(serving, "ranks_of", lambda stand_in: stand_in.ps)
    monkeypatch.setattr(serving, "note_launch", None)


@contextmanager
def as_stage(owner: Any, rank: int, num_stages: int) -> Iterator[None]:
    """Inside, this is one of so many pipeline stages. In 0.5.17 `owner` says it, later the process."""
    if get_pp_group is None:
        group = SimpleNamespace(world_size=num_stages, rank_in_group=rank)
        with get_parallel().override(pp_rank=rank, pp_size=num_stages, pp_group=group, attn_tp_rank=0):
            yield
        return
    kept, owner.ps = owner.ps, replace(owner.ps, pp_rank=rank, pp_size=num_stages)
    try:
        yield
    finally:
        owner.ps = kept


def as_received(message: dict[str, Any]) -> Any:
    """What `_pp_recv_dict_from_prev_stage` gives: 0.5.23 with an event of the transfer."""
    return (message, None) if get_pp_group is None else message


def let_states_be_kept(patch: pytest.MonkeyPatch) -> None:
    """Take the arguments of recurrent layers on any device, which SGLang has kernels for on GPUs only."""
    if hasattr(ServerArgs, "_validate_mamba_extra_buffer"):
        patch.setattr(ServerArgs, "_validate_mamba_extra_buffer", lambda *args: None)
    else:
        patch.setattr("sglang.srt.arg_groups.mamba_hook.validate_mamba_extra_buffer", lambda *_, **__: None)
