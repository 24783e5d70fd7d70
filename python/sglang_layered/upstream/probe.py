"""A few tokens through a model while the server starts, whole and layer by layer: are the numbers the same?

For models that SGLang cannot cut into pipeline stages. Those that it can have an interface for just this,
which SGLang uses itself; a list of layers promises nothing. Nor does a model that keeps rows of some layers
for a draft: SGLang does not cut it then. Where layers are made for their neighbours (0.5.23) all are looked
at. Every process does it for its part of the weights, before "ready". KV goes to slots that no request has
yet; tables are put back.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from sglang.srt.model_executor.forward_batch_info import (
    CaptureHiddenMode,
    ForwardBatch,
    PPProxyTensors,
)
from torch import nn

from sglang_layered.errors import UnsupportedError
from sglang_layered.upstream.aux_states import KeptEmbeds, keepers_of, with_aux_states
from sglang_layered.upstream.layer_list import ListRanges, find_layers
from sglang_layered.upstream.lora import Adapters
from sglang_layered.upstream.models import LayerRanges, PipelineRanges, attend, unfit
from sglang_layered.upstream.probe_prompts import NUM_TOKENS, two_prompts
from sglang_layered.upstream.recurrent import clear_states, has_states
from sglang_layered.upstream.releases import boundaries, forwarding

logger = logging.getLogger(__name__)

# Norm of the logits' difference by that of the logits. The same kernels see the same shapes, so most models
# show none at all; sums over ranks and atomic additions are rounded in another order. A layer that reads
# another prompt's activations makes another sequence of them.
MOST = {True: 1e-3, False: 0.2}  # by whether numbers have 32 bits


def ranges_of(model_runner: Any) -> LayerRanges:
    """The model's layers as pipeline stages, else as a list that is proved once a process.

    Not proved again for new weights, with which SGLang captures its graphs anew: they change no rows' way.

    Raises:
        UnsupportedError: the model's layers cannot be run in ranges.
    """
    model = model_runner.model
    # Where rows are kept for a draft, `with_kept_rows` looks at what comes out of the last layer.
    is_looked_at = boundaries.PROVES_STAGES and not keepers_of(model)
    if PipelineRanges.can_cut(model) and not is_looked_at:
        return PipelineRanges(model)
    made: LayerRanges | None = vars(model).get("layered_ranges")
    if made is None:
        made = vars(model)["layered_ranges"] = proved_ranges(model_runner)
    return made


def proved_ranges(model_runner: Any) -> LayerRanges:
    """The layers of a model with pipeline stages, else with one list of them.

    Raises:
        UnsupportedError: it has no such list, or ranges of its layers give other numbers than all at once.
    """
    began, model = time.perf_counter(), model_runner.model
    with torch.no_grad(), two_prompts(model_runner) as (asked, other):
        probe = Probe(model_runner, asked, other)
        ranges = _found(model, probe)
        probe.prove(ranges)
    logger.info(
        "Layered prefill runs the %d layers of %s as %s; %d tokens gave the same whole and layer by layer"
        " (%.2f s)",
        ranges.num_layers,
        type(model).__name__,
        "a list" if isinstance(ranges, ListRanges) else "pipeline stages",
        NUM_TOKENS,
        time.perf_counter() - began,
    )
    return ranges


def _found(model: nn.Module, probe: "Probe") -> LayerRanges:
    if PipelineRanges.can_cut(model):
        probe.whole()
        return PipelineRanges(model)
    layers = find_layers(model)
    if layers is None:
        raise unfit(model, "SGLang has no pipeline parallelism for it, and it has no single list of layers")
    return ListRanges(model, layers, probe.whole)


def stage_ranges(model_runner: Any) -> PipelineRanges:
    """A pipeline stage's own layers, looked at as a whole model's are, with rows in the place of tokens.

    Raises:
        UnsupportedError: the model's layers cannot be run in ranges.
    """
    ranges = PipelineRanges(model_runner.model)
    if boundaries.PROVES_STAGES:
        with torch.no_grad(), two_prompts(model_runner) as (asked, other):
            Probe(model_runner, asked, other).prove_stage(ranges)
    return ranges


def with_kept_rows(model_runner: Any, ranges: LayerRanges) -> LayerRanges:
    """Ranges that also keep the rows that a draft reads, where the model was told to keep some.

    Raises:
        UnsupportedError: a draft would read other rows from layer groups than from a whole forward.
    """
    model = model_runner.model
    keeping = with_aux_states(model, ranges)
    if keeping is not ranges:
        with torch.no_grad(), two_prompts(model_runner) as (asked, other):
            asked.capture_hidden_mode = CaptureHiddenMode.FULL
            if not Probe(model_runner, asked, other).keeps_rows(keeping):
                raise unfit(model, "a draft would read other rows than those of a whole forward")
    reads_embeds = model_runner.spec_algorithm.is_eagle() and model_runner.model_config.is_multimodal
    return KeptEmbeds(keeping) if reads_embeds else keeping


class Probe:
    """Two prompts; while the first is between two layers, the other runs."""

    def __init__(self, model_runner: Any, asked: ForwardBatch, other: ForwardBatch) -> None:
        self._model_runner = model_runner
        self._asked = asked
        self._other = other
        self._adapters = Adapters.of(model_runner)
        self._most = MOST[model_runner.dtype.itemsize >= torch.float32.itemsize]

    def whole(self) -> int:
        """Run the model's own forward; gives the number of tokens."""
        self._want = self._whole(self._asked)
        return NUM_TOKENS

    def prove(self, ranges: LayerRanges) -> None:
        """Refuse a model whose ranges give other numbers, with the layer where they begin.

        Raises:
            UnsupportedError: a layer takes more from those before it than its rows.
        """
        model, most = self._model_runner.model, self._most
        self._whole(self._other)
        if self._difference(self._whole(self._asked)) > most:
            raise unfit(model, "the same tokens give other numbers after another forward")
        if self._difference(self._layer_by_layer(ranges)) <= most:
            return
        cuts = [self._difference(self._cut(ranges, layer)) for layer in range(1, ranges.num_layers)]
        # What a layer reads of one far before it is lost at every cut between them: the last one is its own.
        differing = [layer for layer, difference in enumerate(cuts, start=1) if difference > most]
        layer = differing[-1] if differing else cuts.index(max(cuts)) + 1
        raise unfit(model, f"layer {layer} takes more from the layers before it than what they hand on")

    def prove_stage(self, ranges: PipelineRanges) -> None:
        """Refuse a stage whose layers give other rows, or logits, one by one than at once.

        Raises:
            UnsupportedError: they do.
        """
        first, end, has_head = ranges.first_layer, ranges.num_layers, ranges.has_head
        # Norms add to rows in place, so each of the two runs has its own.
        given = None if first == 0 else self._rows_like_a_stage_s()
        rows = None if first == 0 else self._rows_like_a_stage_s()
        self._want = _numbers(self._run(ranges, self._asked, first, end, given, last=has_head))
        for layer in range(first, end):
            rows = self._run(ranges, self._asked, layer, layer + 1, rows)
        got = self._run(ranges, self._asked, end, end, rows, last=True) if has_head else rows
        if self._difference(_numbers(got)) > self._most:
            raise unfit(self._model_runner.model, "its layers give other rows one by one than at once")

    def _rows_like_a_stage_s(self) -> PPProxyTensors:
        shape = (NUM_TOKENS, self._model_runner.model_config.hidden_size)
        steps = torch.arange(shape[0] * shape[1], device=self._model_runner.device).reshape(shape)
        hidden = torch.sin(steps).to(self._model_runner.dtype)
        return PPProxyTensors({"hidden_states": hidden, "residual": hidden.flip(0).clone()})

    def keeps_rows(self, ranges: LayerRanges) -> bool:
        """Whether a draft reads the same rows when layers run one by one."""
        with self._attending(self._asked) as asked:
            model = self._model_runner.model
            self._want = model.forward(asked.input_ids, asked.positions.clone(), asked).hidden_states
        rows = self._run(ranges, self._asked, 0, 0)
        for layer in range(ranges.num_layers):
            rows = self._run(ranges, self._asked, layer, layer + 1, rows)
        output = self._run(ranges, self._asked, ranges.num_layers, ranges.num_layers, rows, last=True)
        return self._difference(output.hidden_states) <= self._most

    def _layer_by_layer(self, ranges: LayerRanges) -> torch.Tensor:
        asked, other = self._run(ranges, self._asked, 0, 0), self._run(ranges, self._other, 0, 0)
        for layer in range(ranges.num_layers):
            asked = self._run(ranges, self._asked, layer, layer + 1, asked)
            other = self._run(ranges, self._other, layer, layer + 1, other)
        return self._logits(ranges, ranges.num_layers, asked)

    def _cut(self, ranges: LayerRanges, layer: int) -> torch.Tensor:
        rows = self._run(ranges, self._asked, 0, layer)
        self._whole(self._other)
        return self._logits(ranges, layer, rows)

    def _logits(self, ranges: LayerRanges, start: int, rows: Any) -> torch.Tensor:
        output = self._run(ranges, self._asked, start, ranges.num_layers, rows, last=True)
        return torch.Tensor.float(output.next_token_logits)

    def _run(
        self, ranges: LayerRanges, batch: ForwardBatch, start: int, end: int, *args: Any, **kwargs: Any
    ) -> Any:
        rows = args[0] if args else None
        with self._attending(batch):
            try:
                return ranges.run(batch, start, end, rows, **kwargs)
            except UnsupportedError:
                raise
            except Exception as error:
                raise unfit(
                    self._model_runner.model, f"layers [{start}, {end}) fail alone, {error!r}"
                ) from error

    def _whole(self, batch: ForwardBatch) -> torch.Tensor:
        with self._attending(batch):
            output = self._model_runner.model.forward(batch.input_ids, batch.positions.clone(), batch)
        return torch.Tensor.float(output.next_token_logits)

    @contextmanager
    def _attending(self, batch: ForwardBatch) -> Iterator[ForwardBatch]:
        backend = self._model_runner.attn_backend
        if self._adapters is not None:
            self._adapters.use(batch)
        if has_states(self._model_runner):
            clear_states(self._model_runner, batch)
        backend.init_forward_metadata(batch)
        with forwarding.settings_of(self._model_runner), attend(backend, batch):
            yield batch

    def _difference(self, logits: torch.Tensor) -> float:
        return float((logits - self._want).norm() / self._want.norm())


def _numbers(left: Any) -> torch.Tensor:
    """Rows of a stage, or logits."""
    if not isinstance(left, PPProxyTensors):
        return torch.Tensor.float(left.next_token_logits)
    return torch.cat([part.flatten().float() for part in left.tensors.values() if part is not None])
