"""A fast model of integers in the place of SGLang's: it knows what every row and every KV slot must hold.

Arithmetic is exact, so a request's tokens depend on its own tokens alone, whatever it is batched with. Every
wrong row, slot or layer raises AssertionError at the step that reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
from sglang.srt.layers.logits_processor import LogitsProcessorOutput
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.model_executor.forward_batch_info import ForwardBatch, PPProxyTensors
from torch import nn

from exact_answers import PRIME, VOCAB, embed, expected_tokens, kv_value, mix, next_token

NUM_OVERRUN = 2  # the overlap scheduler launches a finished request's next token before it knows
EMPTY = -1


def history_hashes(tokens: Sequence[int]) -> torch.Tensor:
    """For each position a hash of the tokens up to it: what a KV slot is tagged with."""
    hashes, current = [], 0
    for token in tokens:
        current = (current * 69_621 + token + 1) % PRIME
        hashes.append(current)
    return torch.tensor(hashes)


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows [start, end) of one request in one forward; `is_prompt` when they are run as extend."""

    rid: str
    start: int
    end: int
    is_prompt: bool


def rows_of(batch: ForwardBatch) -> list[Rows]:
    """Which rows a forward has, request by request."""
    ends = batch.seq_lens.tolist()
    if batch.forward_mode.is_decode():
        return [Rows(rid, end - 1, end, False) for rid, end in zip(batch.rids, ends, strict=True)]
    starts = batch.extend_prefix_lens.tolist()
    return [Rows(rid, low, high, True) for rid, low, high in zip(batch.rids, starts, ends, strict=True)]


@dataclass(slots=True)
class RowLog:
    """Which rows each request has computed: every layer once and in order, chunk after chunk, token by token.

    `open` holds rows that met some layers only, with the layer they meet next; `filled` the rows [0, n) that
    a request has in the KV cache. `done` lists the rows that met the last layer, until a test empties it.
    """

    num_layers: int
    open: dict[str, tuple[Rows, int]] = field(default_factory=dict)
    filled: dict[str, int] = field(default_factory=dict)
    done: list[Rows] = field(default_factory=list)
    ran: dict[str, int] = field(default_factory=dict)  # rows of each request's latest prompt
    told: Callable[[], set[str]] = set  # requests whose clients know already that they have ended
    several: bool = False  # cohorts may be in flight

    def meet(self, cohort: Sequence[Rows], layer: int) -> None:
        """These rows meet this layer together."""
        members = {rows.rid for rows in cohort}
        if cohort[0].is_prompt and not self.several:
            prompts = {rid for rid, (rows, _) in self.open.items() if rows.is_prompt}
            strangers = prompts - members - self.told()
            assert not strangers, f"{strangers} are in flight and {members} run layer {layer}"
        for rows in cohort:
            self._meet_one(rows, layer)

    def _meet_one(self, rows: Rows, layer: int) -> None:
        expected = self.open.pop(rows.rid, (rows, 0))
        assert expected == (rows, layer), f"{rows} in layer {layer}; {expected} is due"
        before = self.filled.get(rows.rid)
        if layer == 0 and before is not None:
            assert rows.start == before, f"{rows} after {before} rows"
        assert before is not None or rows.is_prompt, f"{rows} decodes without its prompt"
        if rows.is_prompt:
            self.ran[rows.rid] = rows.end - rows.start
        if layer + 1 < self.num_layers:
            self.open[rows.rid] = (rows, layer + 1)
            return
        self.filled[rows.rid] = rows.end
        self.done.append(rows)

    def forget(self, rid: str) -> None:
        """The request gave its rows back: it waits again, or has ended."""
        self.open.pop(rid, None)
        self.filled.pop(rid, None)


@dataclass(frozen=True, slots=True)
class ContextPlan:
    """Where a batch's attention reads, all requests' contexts one after another."""

    rows: list[Rows]
    slots: torch.Tensor
    tags: torch.Tensor
    weights: torch.Tensor
    first: torch.Tensor  # of each row: index of its context's first position
    last: torch.Tensor  # of each row: index of its own position


class ExactAttention(AttentionBackend):
    """Attention as a sum over the context. It checks the tag of each slot that it reads."""

    def __init__(self, model: ExactModel, req_to_token_pool: Any) -> None:
        super().__init__()
        self._model = model
        self._pool = req_to_token_pool
        self._planned: tuple[ForwardBatch, ContextPlan] | None = None

    def init_forward_metadata(self, forward_batch: ForwardBatch) -> None:
        self._planned = (forward_batch, self._plan(forward_batch))

    def forward_extend(self, q: Any, k: Any, v: Any, layer: Any, forward_batch: Any, **kwargs: Any) -> Any:
        return self._attend(k, v, layer.layer_id, forward_batch)

    def forward_decode(self, q: Any, k: Any, v: Any, layer: Any, forward_batch: Any, **kwargs: Any) -> Any:
        return self._attend(k, v, layer.layer_id, forward_batch)

    def _plan(self, batch: ForwardBatch) -> ContextPlan:
        rows, table = rows_of(batch), self._pool.req_to_token
        indices = batch.req_pool_indices.tolist()
        slots = [table[index, : part.end] for index, part in zip(indices, rows, strict=True)]
        first, last, offset = [], [], 0
        for part in rows:
            first += [offset] * (part.end - part.start)
            last += range(offset + part.start, offset + part.end)
            offset += part.end
        return ContextPlan(
            rows,
            torch.cat(slots).to(torch.int64),
            torch.cat([self._model.histories[part.rid][: part.end] for part in rows]),
            torch.cat([self._model.weights[: part.end] for part in rows]),
            torch.tensor(first),
            torch.tensor(last),
        )

    def _attend(self, k: Any, v: Any, layer: int, batch: ForwardBatch) -> torch.Tensor:
        assert self._planned is not None and self._planned[0] is batch, "planned for another batch"
        plan, model = self._planned[1], self._model
        model.log.meet(plan.rows, layer)
        model.tags[layer][batch.out_cache_loc] = k.flatten()
        model.values[layer][batch.out_cache_loc] = v.flatten()
        wrong = (model.tags[layer][plan.slots] != plan.tags).nonzero().flatten()
        if len(wrong):
            slot = int(plan.slots[wrong[0]])
            held = "is not filled" if model.tags[layer][slot] == EMPTY else "holds another history"
            raise AssertionError(f"layer {layer} of slot {slot} {held} ({len(wrong)} slots), {plan.rows}")
        sums = torch.cumsum(model.values[layer][plan.slots] * plan.weights, 0)
        before = torch.cat([sums.new_zeros(1), sums])[plan.first]
        return ((sums[plan.last] - before) % PRIME).unsqueeze(1)


class ExactLayer(nn.Module):
    """Rows are `hidden_states`, the layer before's as `residual`, and the `history` that they stand for."""

    def __init__(self, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.attention = RadixAttention(1, 1, 1.0, 1, layer)

    def forward(self, rows: dict[str, torch.Tensor], forward_batch: ForwardBatch) -> dict[str, torch.Tensor]:
        hidden, history = rows["hidden_states"], rows["history"]
        value = kv_value(hidden, self.layer)
        attention = self.attention(hidden, history, value, forward_batch)
        mixed = mix(hidden, rows["residual"], attention, self.layer)
        return {"hidden_states": mixed, "residual": hidden, "history": history}


class ExactStack(nn.Module):
    """The layers, with the pipeline interface of SGLang's models."""

    def __init__(self, num_layers: int, pp_group: Any) -> None:
        super().__init__()
        self.layers = nn.ModuleList(ExactLayer(layer) for layer in range(num_layers))
        self.start_layer, self.end_layer = 0, num_layers
        self.pp_group = pp_group

    def forward(
        self,
        embed_rows: Callable[[], dict[str, torch.Tensor]],
        forward_batch: ForwardBatch,
        proxies: PPProxyTensors | None,
    ) -> dict[str, torch.Tensor]:
        assert self.pp_group.is_first_rank == (proxies is None)
        rows = embed_rows() if proxies is None else proxies.tensors
        for layer in self.layers[self.start_layer : self.end_layer]:
            rows = layer(rows, forward_batch)
        return rows


class ExactModel(nn.Module):
    """Stands where SGLang's model stands. `expect` each request before its first step."""

    def __init__(self, num_layers: int, num_slots: int, max_tokens: int = 4096) -> None:
        super().__init__()
        self.pp_group = SimpleNamespace(is_first_rank=True, is_last_rank=True)
        self.model = ExactStack(num_layers, self.pp_group)
        self.log = RowLog(num_layers)
        self.tags = torch.full((num_layers, num_slots), EMPTY)
        self.values = torch.zeros((num_layers, num_slots), dtype=torch.int64)
        self.weights = torch.arange(1, max_tokens + 1)
        self.num_layers = num_layers
        self.tokens: dict[str, torch.Tensor] = {}
        self.histories: dict[str, torch.Tensor] = {}

    def expect(self, rid: str, prompt: Sequence[int], max_new_tokens: int) -> list[int]:
        """Take note of a request; returns the tokens that it must answer."""
        outputs = expected_tokens(prompt, max_new_tokens + NUM_OVERRUN, self.num_layers)
        tokens = [*prompt, *outputs]
        self.tokens[rid], self.histories[rid] = torch.tensor(tokens), history_hashes(tokens)
        return outputs[:max_new_tokens]

    def forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        forward_batch: ForwardBatch,
        pp_proxy_tensors: PPProxyTensors | None = None,
        **kwargs: Any,
    ) -> PPProxyTensors | LogitsProcessorOutput:
        rows = self.model(
            lambda: self._embed(input_ids, positions, forward_batch), forward_batch, pp_proxy_tensors
        )
        return self._logits(rows, forward_batch) if self.pp_group.is_last_rank else PPProxyTensors(rows)

    def _embed(
        self, input_ids: torch.Tensor, positions: torch.Tensor, batch: ForwardBatch
    ) -> dict[str, torch.Tensor]:
        rows = rows_of(batch)
        due = torch.cat([self.tokens[part.rid][part.start : part.end] for part in rows])
        places = torch.cat([self.weights[part.start : part.end] for part in rows]) - 1
        assert torch.equal(input_ids, due), f"other tokens than due enter for {rows}"
        assert torch.equal(positions, places), f"other positions than due enter for {rows}"
        self.tags[:, batch.out_cache_loc] = EMPTY
        history = torch.cat([self.histories[part.rid][part.start : part.end] for part in rows])
        hidden = embed(input_ids, positions).unsqueeze(1)
        return {
            "hidden_states": hidden,
            "residual": torch.zeros_like(hidden),
            "history": history.unsqueeze(1),
        }

    def _logits(self, rows: dict[str, torch.Tensor], batch: ForwardBatch) -> LogitsProcessorOutput:
        hidden = rows["hidden_states"].flatten()
        if batch.forward_mode.is_extend():
            hidden = hidden[torch.cumsum(batch.extend_seq_lens, 0) - 1]
        one_hot = nn.functional.one_hot(next_token(hidden), VOCAB)
        return LogitsProcessorOutput(next_token_logits=one_hot.to(torch.float32))
