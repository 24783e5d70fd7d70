"""The ways to run a layered step give the same tokens; each takes the path that its name says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
from torch import nn

from harness import SteppedScheduler
from prompts import alone, prompt
from sglang_layered.config import LayeredConfig
from sglang_layered.core.choice import StrategyChoice
from sglang_layered.core.events import StepDone
from sglang_layered.errors import UnsupportedError
from sglang_layered.runner.execution import Execution
from sglang_layered.upstream.runner import layer_with_scratch, share_scratch

pytestmark = pytest.mark.same_without_overlap("what a step launches, whatever is done with its results")


class WrittenDown:
    """Stands for a second stream: writes down what was launched where."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def fork(self) -> None:
        self.calls.append("fork")

    @contextmanager
    def branch(self) -> Iterator[None]:
        self.calls.append("side")
        yield
        self.calls.append("join")


@pytest.fixture
def execution(stepped: SteppedScheduler) -> Iterator[Execution]:
    found = stepped.loop._execution
    usual = found.choice, found._beside
    yield found
    found.choice, found._beside = usual


def strategies_of(stepped: SteppedScheduler) -> list[str]:
    return [event.strategy for event in stepped.events if isinstance(event, StepDone) and event.strategy]


@pytest.mark.parametrize("strategy", ["fused", "sequential", "concurrent"])
def test_tokens_do_not_depend_on_the_strategy(
    stepped: SteppedScheduler, execution: Execution, strategy: str
) -> None:
    prompts = [prompt(15, 1), prompt(20, 2), prompt(300, 3), prompt(1200, 4)]
    expected = [alone(stepped, tokens, 12) for tokens in prompts]
    execution.choice, execution._beside = StrategyChoice(strategy), WrittenDown()
    running = [stepped.send(tokens, 12) for tokens in prompts[:2]]
    stepped.step(2)
    late = [stepped.send(tokens, 12) for tokens in prompts[2:]]
    assert stepped.finish(*running, *late) == expected
    assert set(strategies_of(stepped)) == {strategy}


def test_strategies_may_change_between_the_groups_of_a_cohort(
    stepped: SteppedScheduler, execution: Execution
) -> None:
    tokens = prompt(320, 5)
    expected = alone(stepped, tokens, 6)
    stepped.send(prompt(10, 6), 60)
    stepped.step(2)
    execution._beside = WrittenDown()
    rid = stepped.send(tokens, 6)
    for strategy in ("sequential", "fused", "concurrent", "sequential", "fused"):
        execution.choice = StrategyChoice(strategy)
        stepped.step()
    assert stepped.next_group is None
    assert stepped.finish(rid) == [expected]


def rows_of_forwards(stepped: SteppedScheduler, strategy: str, execution: Execution) -> list[list[int]]:
    """For each layer the rows of every forward in one layered step: 2 running, 300 prompt tokens."""
    layers = stepped.scheduler.tp_worker.model_runner.model.model.layers
    for seed in (1, 2):
        stepped.send(prompt(12, seed), 60)
    stepped.step(2)
    execution.choice = StrategyChoice(strategy)
    stepped.send(prompt(300, 7), 2)
    seen: list[list[int]] = [[] for _ in layers]
    hooks = [
        layer.register_forward_pre_hook(lambda _, args, rows=rows: rows.append(len(args[0])))
        for layer, rows in zip(layers, seen, strict=True)
    ]
    stepped.step()
    for hook in hooks:
        hook.remove()
    return seen


def test_fused_rows_share_the_group(stepped: SteppedScheduler, execution: Execution) -> None:
    rows = rows_of_forwards(stepped, "fused", execution)
    assert rows == [[302], [302], *[[2]] * (stepped.num_layers - 2)]


def test_sequential_rows_do_not(stepped: SteppedScheduler, execution: Execution) -> None:
    rows = rows_of_forwards(stepped, "sequential", execution)
    assert rows == [[2, 300], [2, 300], *[[2]] * (stepped.num_layers - 2)]


def test_concurrent_decode_is_launched_before_the_side_and_joined(
    stepped: SteppedScheduler, execution: Execution
) -> None:
    beside = execution._beside = WrittenDown()
    decode_alone, fused = execution._runner.decode_alone, execution._runner.fused
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            execution._runner,
            "decode_alone",
            lambda batch: beside.calls.append("decode") or decode_alone(batch),
        )
        patch.setattr(execution._runner, "fused", lambda step: beside.calls.append("prompt") or fused(step))
        rows_of_forwards(stepped, "concurrent", execution)
    assert beside.calls == ["fork", "decode", "side", "prompt", "join"]


def test_logprobs_do_not_depend_on_the_strategy(stepped: SteppedScheduler, execution: Execution) -> None:
    logprobs = {}
    for strategy in ("fused", "sequential"):
        execution.choice = StrategyChoice(strategy)
        first = stepped.send(prompt(12, 8), 20, return_logprob=True)
        stepped.step(2)
        late = stepped.send(prompt(200, 9), 5, return_logprob=True)
        stepped.finish(first, late)
        logprobs[strategy] = [stepped.reqs[rid].logprob.output_token_logprobs_val for rid in (first, late)]
        stepped.drain()
    for one, other in zip(*logprobs.values(), strict=True):
        torch.testing.assert_close(torch.tensor(one), torch.tensor(other), atol=1e-4, rtol=0)


def test_auto_compares_what_the_device_can_do(stepped: SteppedScheduler) -> None:
    auto = Execution.from_config(
        stepped.loop._execution._runner, LayeredConfig("layered", layered_execution="auto"), "cpu"
    )
    assert auto.choice.strategies == ("fused", "sequential")


def test_auto_runs_and_measures(stepped: SteppedScheduler, execution: Execution) -> None:
    tokens = prompt(500, 10)
    expected = alone(stepped, tokens, 3)
    execution.choice = StrategyChoice("fused", "sequential")
    stepped.send(prompt(10, 11), 100)
    stepped.step(2)
    assert stepped.finish(stepped.send(tokens, 3)) == [expected]
    assert set(strategies_of(stepped)) == {"fused", "sequential"}
    assert any(
        durations for bucket in execution.choice._buckets.values() for durations in bucket.durations.values()
    )


class OneWorkspace:
    """A runner whose two attention backends write the same workspace."""

    not_concurrent = "this attention backend has one workspace for the whole process"
    fused = decode_alone = None


def test_concurrent_is_refused_where_attention_has_one_workspace() -> None:
    config = LayeredConfig("layered", layered_execution="concurrent")
    with pytest.raises(UnsupportedError, match=r"concurrent.*workspace.*use fused or auto"):
        Execution.from_config(OneWorkspace(), config, "cuda")  # type: ignore[arg-type]


def test_auto_leaves_concurrent_out_where_attention_has_one_workspace(
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = LayeredConfig("layered", layered_execution="auto")
    auto = Execution.from_config(OneWorkspace(), config, "cuda")  # type: ignore[arg-type]
    assert auto.choice.strategies == ("fused", "sequential")
    assert "workspace" in caplog.text


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize(("apart", "keeps_embeds"), [(False, False), (True, False), (False, True)])
def test_drafts_are_verified_with_the_group_unless_that_is_whole_or_images_are_told_of(
    device: str, apart: bool, keeps_embeds: bool
) -> None:
    runner = SimpleNamespace(verifies_apart=apart, keeps_embeds=keeps_embeds, fused=None, decode_alone=None)
    execution = Execution.from_config(runner, LayeredConfig("layered"), device, True)  # type: ignore[arg-type]
    assert execution.choice.only == ("sequential" if apart or keeps_embeds else "fused")


class Backend(AttentionBackend):
    """An attention backend with these attributes."""

    def __init__(self, **parts: object) -> None:
        self.__dict__.update(parts)


def test_a_shared_workspace_is_found_inside_of_backends() -> None:
    buffer = torch.zeros(8)
    one = Backend(prefill_backend=Backend(workspace_buffer=buffer[:4]))
    assert share_scratch(one, Backend(workspace_buffer=buffer[4:]))
    assert not share_scratch(one, Backend(workspace_buffer=torch.zeros(8), kv_indices=buffer))


@pytest.mark.parametrize("holder", ["layer", "scheme", "quant_method"])
@pytest.mark.parametrize("scratch", ["workspace", "problem_sizes1"])
def test_layers_whose_kernels_write_memory_of_their_own_are_found(holder: str, scratch: str) -> None:
    layer = nn.Linear(2, 2)
    model = nn.Sequential(nn.Linear(2, 2), layer)
    assert layer_with_scratch(model) is None
    if holder != "layer":
        setattr(layer, holder, SimpleNamespace(**{scratch: None}))
        assert layer_with_scratch(model) is None
    setattr(layer if holder == "layer" else getattr(layer, holder), scratch, torch.zeros(1))
    assert layer_with_scratch(model) == "1"
