"""Models of one list of layers, broken on purpose: does the probe at start say which layer it is?"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from sglang_layered.errors import UnsupportedError
from sglang_layered.upstream.layer_list import find_layers
from sglang_layered.upstream.probe import proved_ranges
from sglang_layered.upstream.releases import boundaries

Forward = Callable[..., Any]


def probe_findings(model_runner: Any) -> dict[str, Any]:
    """What the probe says of a model whose layers look aside; of a sound one what it took and left."""
    layers = find_layers(model_runner.model)
    assert layers is not None
    before, began = _state(model_runner), time.perf_counter()
    proved_ranges(model_runner)
    seconds, after = time.perf_counter() - began, _state(model_runner)
    return {
        "seconds": seconds,
        "changed": [name for name in before if not torch.equal(before[name], after[name])],
        "layer 3 looks at its neighbour": refusal(model_runner, layers[2], layers[3]),
        "layer 5 looks at layer 1": refusal(model_runner, layers[1], layers[5]),
        "layer 4 looks at layer 5": refusal(model_runner, layers[5], layers[4]),
    }


def refusal(model_runner: Any, seen: nn.Module, looking: nn.Module) -> str:
    """What a start says of a model with a layer that looks at another one."""
    with looking_at(seen, looking):
        try:
            proved_ranges(model_runner)
        except UnsupportedError as error:
            return str(error)
    return "served"


@contextmanager
def looking_at(seen: nn.Module, looking: nn.Module) -> Iterator[None]:
    """One layer also adds what another one returned last, row by row as far as there are as many."""
    kept: list[torch.Tensor] = []

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        kept[:] = [hidden.clone()]

    def add(module: nn.Module, args: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        if kept:
            num_rows = min(hidden.shape[0], kept[0].shape[0])
            if not boundaries.PROVES_STAGES:  # else the batch has to know this very tensor
                hidden = hidden.clone()
            hidden[:num_rows] += 0.5 * kept[0][:num_rows]
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    hooks = (_inside(seen, keep), _inside(looking, add))
    try:
        yield
    finally:
        for undo in hooks:
            undo()


def _inside(layer: nn.Module, hook: Callable[..., Any]) -> Callable[[], None]:
    """A hook that a stand-in for the layer's forward does not set off, as code of the layer's own."""
    forward: Forward = layer.forward

    def hooked(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        answer = hook(layer, args, output)
        return output if answer is None else answer

    hooked.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
    vars(layer)["forward"] = hooked
    return lambda: vars(layer).pop("forward")


def _state(model_runner: Any) -> dict[str, torch.Tensor]:
    """What a start must leave as it was."""
    allocator = model_runner.token_to_kv_pool_allocator
    mapping = getattr(allocator, "full_to_swa_index_mapping", None)
    free_rows = model_runner.req_to_token_pool.free_slots
    found = {
        "free slots": torch.tensor(allocator.available_size()),
        "table of requests": model_runner.req_to_token_pool.req_to_token,
        "free rows": torch.tensor(free_rows),
        "random numbers": torch.get_rng_state(),
        "forwards": torch.tensor(model_runner.forward_pass_id),
    }
    if mapping is not None:
        found["table of sliding-window slots"] = mapping
    watch = getattr(model_runner, "layered_expert_watch", None)
    if watch is not None:
        found["expert bytes"] = watch._counter.totals
    return {name: value.clone() for name, value in found.items()}
