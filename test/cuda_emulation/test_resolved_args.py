"""Every server that is to start on a GPU host, as SGLang resolves it there: do its settings fit each other?

What each attention backend takes is written down from its own library, not from SGLang's choice of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from fake_device import DEVICES
from launch_commands import default_launch, fixture_commands, todo_commands
from sglang_layered.runner.decode_graphs.segments import BatchBuckets, to_capture
from workers import Workers

HALF = frozenset({"float16", "bfloat16"})
ALL = HALF | {"float32"}
FLASHINFER_HEADS = frozenset({64, 128, 256, 512})
MOST_CAPTURES = 400


@dataclass(frozen=True)
class Takes:
    """What a backend's kernels are compiled for; empty sets of sizes take all."""

    dtypes: frozenset[str]
    head_sizes: frozenset[int] = frozenset()
    page_sizes: frozenset[int] = frozenset()
    capabilities: frozenset[int] = frozenset({9, 10})  # the major one


BACKENDS = {
    "triton": Takes(ALL),
    "torch_native": Takes(ALL),
    "flashinfer": Takes(HALF, FLASHINFER_HEADS),
    "fa3": Takes(HALF, capabilities=frozenset({9})),
    "fa4": Takes(HALF, frozenset({64, 96, 128}), capabilities=frozenset({10})),
    "trtllm_mha": Takes(
        HALF, frozenset({64, 128, 256}), frozenset({16, 32, 64}), capabilities=frozenset({10})
    ),
}


def misfits(resolved: dict[str, Any], device: str) -> list[str]:
    """What does not fit, in words."""
    found = []
    if resolved["device"] != "cuda":
        found.append(f"it runs on {resolved['device']}")
    for name in set(resolved["attention"]):
        takes = BACKENDS.get(name)
        if takes is None:
            found.append(f"nobody wrote down what attention backend {name} takes")
            continue
        for what, value, taken in (
            ("dtype", resolved["model_dtype"], takes.dtypes),
            ("head size", resolved["head_size"], takes.head_sizes),
            ("page size", resolved["page_size"], takes.page_sizes),
            ("compute capability", DEVICES[device].capability[0], takes.capabilities),
        ):
            if taken and value not in taken:
                found.append(f"{name} takes no {what} {value}")
    return found


def all_misfits(workers: Workers, device: str, commands: dict[str, list[str]]) -> dict[str, list[str]]:
    """By the name of a command what does not fit, or why it does not resolve."""
    found = {}
    for name, resolved in zip(commands, workers.resolve(device, list(commands.values())), strict=True):
        wrong = [resolved["error"]] if "error" in resolved else misfits(resolved, device)
        if wrong:
            found[name] = wrong
    return found


@pytest.mark.parametrize("device", DEVICES)
def test_the_default_launch_fits(workers: Workers, device: str) -> None:
    assert all_misfits(workers, device, {"default": default_launch()}) == {}
    [resolved] = workers.resolve(device, [default_launch()])
    assert not resolved["disable_overlap_schedule"]
    assert set(resolved["attention"]) == {"trtllm_mha" if device == "b200" else "fa3"}


@pytest.mark.parametrize("device", DEVICES)
def test_servers_of_the_open_checks_fit(workers: Workers, device: str) -> None:
    commands = todo_commands()
    assert len(commands) > 1
    assert all_misfits(workers, device, commands) == {}


@pytest.mark.parametrize("device", DEVICES)
def test_servers_of_the_tests_fit(workers: Workers, device: str) -> None:
    assert all_misfits(workers, device, fixture_commands(workers.driver)) == {}


def test_a_granularity_without_graphs_is_refused(workers: Workers) -> None:
    flags = ["--layered-graph-granularity", "3", "--layered-execution"]
    commands = [[*default_launch(), *flags, execution] for execution in ("sequential", "concurrent")]
    for resolved in workers.resolve("h100", commands):
        assert "--layered-graph-granularity" in resolved.get("error", "")


@pytest.mark.parametrize("device", DEVICES)
def test_the_default_launch_captures_few_graphs(workers: Workers, device: str) -> None:
    [resolved] = workers.resolve(device, [default_launch()])
    assert resolved["layered_graph_granularity"] is None
    stock = BatchBuckets(tuple(resolved["decode_graph_sizes"]))
    segments, buckets = to_capture(resolved["num_layers"], None, stock)
    assert 200 < len(buckets.sizes) * segments.num_graphs <= MOST_CAPTURES
    assert segments.granularity == 3, "a group of three layers, of sixteen, needs no layer run eagerly"
