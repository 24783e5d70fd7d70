"""Ranges of any list of layers: how rows pass is read off a run, whatever the model calls its parts."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.model_executor.forward_batch_info import ForwardBatch, PPProxyTensors
from torch import nn

import release_differences
from release_differences import asks_the_process
from sglang_layered.errors import UnsupportedError
from sglang_layered.upstream import layer_list
from sglang_layered.upstream.layer_list import ListRanges, find_layers
from sglang_layered.upstream.models import PipelineRanges
from sglang_layered.upstream.releases import boundaries

NUM_LAYERS, NUM_TOKENS = 5, 4
TOKENS = torch.tensor([3, 1, 4, 1])


class Plain(nn.Module):
    """One tensor in, one tensor out, under a name of its own."""

    def __init__(self, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.attention = RadixAttention(1, 1, 1.0, 1, layer)

    def forward(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return x * (self.layer + 2) + positions[:, None]


class Paired(Plain):
    """Rows and residual, of which layer 0 gets none; and a third value, which nobody takes."""

    def forward(self, positions: torch.Tensor, hidden: torch.Tensor, skip: Any = None) -> Any:
        skip = hidden if skip is None else hidden + skip
        return skip * (self.layer + 2) + positions[:, None], skip, torch.zeros(1)


class Model(nn.Module):
    """A stack inside a wrapper that counts its positions up in place, as Gemma 3's does."""

    def __init__(self, kind: type[Plain], between: Callable[[int, torch.Tensor], Any] = lambda _, x: x):
        super().__init__()
        self.encoder = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))
        self.blocks = nn.ModuleList(kind(layer) for layer in range(NUM_LAYERS))
        self.between, self.is_paired = between, kind is Paired

    def forward(self, input_ids: torch.Tensor, positions: torch.Tensor, forward_batch: Any) -> torch.Tensor:
        positions += 1
        x = input_ids[:, None].to(torch.float64) * torch.ones(1, 3, dtype=torch.float64)
        x *= 2.5
        skip = None
        for index, block in enumerate(self.blocks):
            if self.is_paired:
                x, skip, _ = block(positions, hidden=x, skip=skip)
            else:
                x = block(x, positions)
            x = self.between(index, x)
        return x if skip is None else x + skip


def batch_of(tokens: torch.Tensor) -> Any:
    return SimpleNamespace(input_ids=tokens, positions=torch.arange(tokens.shape[0]), input_embeds=None)


def ranges_of(model: Model) -> ListRanges:
    layers, batch = find_layers(model), batch_of(TOKENS)
    assert layers is not None

    def whole() -> int:
        model(batch.input_ids, batch.positions, batch)
        return NUM_TOKENS

    return ListRanges(model, layers, whole)


@pytest.mark.parametrize("kind", [Plain, Paired])
@pytest.mark.parametrize("cuts", [(0, 5), (0, 0, 5, 5), (0, 1, 2, 3, 4, 5), (0, 2, 5)])
def test_ranges_give_what_the_whole_model_gives(kind: type[Plain], cuts: tuple[int, ...]) -> None:
    model = Model(kind)
    batch: ForwardBatch = batch_of(TOKENS)
    want = model(batch.input_ids, batch.positions.clone(), batch)
    ranges = ranges_of(model)
    rows = ranges.run(batch, 0, 0, None)
    for start, end in pairwise(cuts):
        rows = ranges.run(batch, start, end, rows) if start < end else rows
    assert torch.equal(ranges.run(batch, NUM_LAYERS, NUM_LAYERS, rows, last=True), want)
    assert torch.equal(batch.positions, torch.arange(NUM_TOKENS)), "the model counts up a copy"
    assert torch.equal(model(batch.input_ids, batch.positions.clone(), batch), want), "nothing is left behind"


def test_rows_carry_the_names_that_the_layers_have() -> None:
    rows = ranges_of(Model(Paired)).run(batch_of(TOKENS), 0, 0, None)
    assert rows["hidden"].shape == (NUM_TOKENS, 3) and rows["skip"] is None
    assert ranges_of(Model(Plain)).run(batch_of(TOKENS), 0, 2, None).tensors.keys() == {"x"}


def test_a_layer_that_takes_something_else_is_named() -> None:
    with pytest.raises(UnsupportedError, match=r"layer 3 does not take what the layer before returns"):
        ranges_of(Model(Plain, between=lambda index, x: x + 1 if index == 2 else x))


def test_a_loop_may_ask_a_layer_for_its_attributes() -> None:
    model = Model(Plain)
    asked: list[int] = []
    model.between = lambda index, x: asked.append(model.blocks[index].layer) or x
    ranges_of(model).run(batch_of(TOKENS), 2, 3, ranges_of(model).run(batch_of(TOKENS), 0, 2, None))
    assert asked[-2:] == [0, 1], "of layers before the range as well"
    assert model.blocks is model.get_submodule("blocks"), "the list is the model's own again"


class Keeping(Plain):
    """Keeps what it adds on the batch, as layers of SGLang 0.5.23; the next layer takes it from there."""

    def forward(self, x: torch.Tensor, positions: torch.Tensor, batch: Any) -> torch.Tensor:
        batch.kept = x if batch.kept is None else x + batch.kept
        return batch.kept * (self.layer + 2) + positions[:, None]


class KeepingModel(Model):
    def __init__(self) -> None:
        super().__init__(Keeping)

    def forward(self, input_ids: torch.Tensor, positions: torch.Tensor, forward_batch: Any) -> torch.Tensor:
        x = input_ids[:, None] * torch.ones(1, 3, dtype=torch.float64)
        forward_batch.kept = None
        for block in self.blocks:
            x = block(x, positions, forward_batch)
        kept, forward_batch.kept = forward_batch.kept, None
        return x + kept


class Handover:
    """As of SGLang 0.5.23: the first layer begins, the others go on."""

    def enter(self, number: int, rows: PPProxyTensors, batch: Any) -> torch.Tensor:
        batch.kept = rows.tensors.get("residual")
        return rows["hidden_states"]

    def leave(self, handed: torch.Tensor, batch: Any) -> dict[str, torch.Tensor]:
        kept, batch.kept = batch.kept, None
        return {"hidden_states": handed} | ({} if kept is None else {"residual": kept})


@pytest.mark.parametrize("cuts", [(0, 5), (0, 1, 2, 3, 4, 5), (0, 2, 5)])
def test_what_layers_keep_on_the_batch_goes_with_the_rows(
    monkeypatch: pytest.MonkeyPatch, cuts: tuple[int, ...]
) -> None:
    monkeypatch.setattr(layer_list.boundaries, "handover", lambda layers: Handover())
    model = KeepingModel()
    batch, other = batch_of(TOKENS), batch_of(TOKENS + 1)
    want = model(batch.input_ids, batch.positions, batch)
    ranges = ranges_of(model)
    rows, others = ranges.run(batch, 0, 0, None), ranges.run(other, 0, 0, None)
    assert rows.tensors.keys() == {"hidden_states"}
    for start, end in pairwise(cuts):
        rows, others = ranges.run(batch, start, end, rows), ranges.run(other, start, end, others)
        assert batch.kept is None and rows.tensors.keys() == {"hidden_states", "residual"}
    assert torch.equal(ranges.run(batch, NUM_LAYERS, NUM_LAYERS, rows, last=True), want)
    below = ranges.run(batch, 0, 3, None)
    assert torch.equal(ranges.run(batch, 3, NUM_LAYERS, below, last=True), want), "as decode rows pass"


def test_layers_that_cannot_be_entered_are_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(layers: nn.ModuleList) -> None:
        raise NotImplementedError("layer 2 has no boundary")

    monkeypatch.setattr(layer_list.boundaries, "handover", refuse)
    with pytest.raises(UnsupportedError, match="cannot be run in ranges: layer 2 has no boundary"):
        ranges_of(Model(Plain))


class Sideways(Plain):
    """Rows are not the first dimension."""

    def forward(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return (x if x.shape[0] == 2 else torch.stack([x, x])) + 1


def test_rows_that_do_not_come_first_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="x of layer 1 has no row for each token"):
        ranges_of(Model(Sideways))


def test_layers_that_run_twice_are_refused() -> None:
    model = Model(Plain)
    model.between = lambda index, x: model.blocks[0](x, torch.zeros(NUM_TOKENS)) if index == 3 else x
    with pytest.raises(UnsupportedError, match="5 layers are called 6 times"):
        ranges_of(model)


def test_only_a_list_whose_every_module_attends_is_one_of_layers() -> None:
    model = Model(Plain)
    assert find_layers(model) is model.blocks
    model.more = nn.ModuleList([Plain(0)])
    assert find_layers(model) is None


def test_a_wrapper_that_hides_the_pipeline_interface_has_a_list_of_layers() -> None:
    """As SGLang's Kimi-VL and InternVL around models that have it."""
    model = Model(Plain)
    model.pp_group, model.start_layer, model.end_layer = SimpleNamespace(), 0, NUM_LAYERS
    assert not PipelineRanges.can_cut(model)

    class Open(Model):
        def forward(self, pp_proxy_tensors: Any = None) -> None:  # type: ignore[override]
            pass

    open_one = Open(Plain)
    vars(open_one).update(pp_group=SimpleNamespace(), start_layer=0, end_layer=NUM_LAYERS)
    assert PipelineRanges.can_cut(open_one)


class Asking(nn.Module):
    """Asks the process's group whether it has the first layer, as Kimi-K3's, and its own whether the last."""

    def __init__(self) -> None:
        super().__init__()
        self.pp_group = SimpleNamespace(is_first_rank=True, is_last_rank=True)
        self.start_layer, self.end_layer = 0, NUM_LAYERS
        self.layers = nn.ModuleList(nn.Identity() for _ in range(NUM_LAYERS))

    forward = asks_the_process


def test_a_model_that_asks_the_process_for_its_group_is_told_of_its_range() -> None:
    asked = getattr(release_differences, boundaries.PROCESS_GROUP)
    ranges, batch = PipelineRanges(Asking()), SimpleNamespace(input_ids=None, positions=None)
    assert ranges.run(batch, 0, 0, None, last=True) == (True, True)  # type: ignore[arg-type]
    rows = PPProxyTensors({})
    assert ranges.run(batch, 2, NUM_LAYERS, rows, last=True) == (False, True)  # type: ignore[arg-type]
    assert getattr(release_differences, boundaries.PROCESS_GROUP) is asked, "it is the process's own again"
