"""FlashInfer's four wrappers in plain torch: they take what the real plan() and run() take and attend.

Arguments are bound to the real signatures of the installed FlashInfer: a name that it lacks is an error here.
Written from FlashInfer's documentation of the page tables; knows nothing of req_to_token.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import flashinfer
import torch


def bound(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> SimpleNamespace:
    """The arguments by name, defaults filled in, as the real method would see them."""
    values = inspect.signature(function).bind(None, *args, **kwargs)
    values.apply_defaults()
    return SimpleNamespace(**values.arguments)


def attend(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    *,
    causal: bool,
    sm_scale: float | None,
    window_left: int,
    soft_cap: float | None = None,
    seen: torch.Tensor | None = None,
) -> torch.Tensor:
    """q [rows, heads, dim] on keys and values [keys, kv heads, dim]; the last row stands at the last key.

    `seen` [rows, keys] says which keys a row sees, where neither `causal` nor a window does.
    """
    num_rows, num_heads, head_dim = q.shape
    num_keys, num_kv_heads, _ = keys.shape
    scale = head_dim**-0.5 if sm_scale is None else sm_scale
    grouped = q.view(num_rows, num_kv_heads, num_heads // num_kv_heads, head_dim)
    scores = torch.einsum("qhgd,khd->hgqk", grouped, keys) * scale
    if soft_cap:
        scores = soft_cap * torch.tanh(scores / soft_cap)
    distance = (torch.arange(num_rows)[:, None] + num_keys - num_rows) - torch.arange(num_keys)[None]
    hidden = torch.zeros_like(distance, dtype=torch.bool)
    if seen is not None:
        hidden |= ~seen
    if causal:
        hidden |= distance < 0
    if window_left >= 0:
        hidden |= distance > window_left
    weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
    return torch.einsum("hgqk,khd->qhgd", weights, values).reshape(q.shape)


class Tables:
    """Page tables as FlashInfer documents them, checked."""

    def __init__(self, qo_indptr: Any, kv_indptr: Any, indices: Any, last_page_len: Any, plan: Any) -> None:
        for table in (qo_indptr, kv_indptr, indices, last_page_len):
            assert table.dtype == torch.int32
        assert len(qo_indptr) == len(kv_indptr) == len(last_page_len) + 1
        assert int(kv_indptr[0]) == 0
        assert int(kv_indptr[-1]) == len(indices)
        assert bool(((last_page_len >= 1) & (last_page_len <= plan.page_size)).all())
        self.qo, self.kv = qo_indptr.tolist(), kv_indptr.tolist()
        self.indices, self.last = indices, last_page_len.tolist()
        self.plan = plan

    def run(self, q: torch.Tensor, cache: tuple[torch.Tensor, ...], **mask: Any) -> torch.Tensor:
        plan = self.plan
        assert q.shape == (self.qo[-1], plan.num_qo_heads, q.shape[2])
        assert q.is_contiguous()
        assert q.dtype == plan.q_data_type
        for part in cache:
            assert part.shape[1:] == (plan.page_size, plan.num_kv_heads, q.shape[2])
            assert part.dtype == (plan.kv_data_type or plan.q_data_type)
        output = torch.empty_like(q)
        for index, last in enumerate(self.last):
            pages = self.indices[self.kv[index] : self.kv[index + 1]].long()
            num_keys = (len(pages) - 1) * plan.page_size + last
            keys, values = (part[pages].flatten(0, 1)[:num_keys] for part in cache)
            rows = slice(self.qo[index], self.qo[index + 1])
            output[rows] = attend(q[rows], keys, values, sm_scale=plan.sm_scale, **mask)
        return output


class Emulated:
    """One wrapper; counts its plans and runs."""

    real: type

    def __init__(self) -> None:
        self.num_plans = 0
        self.num_runs = 0

    def _planned(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> SimpleNamespace:
        self.num_plans += 1
        return bound(self.real.plan, args, kwargs)

    def _called(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> SimpleNamespace:
        self.num_runs += 1
        return bound(self.real.run, args, kwargs)


class EmulatedPrefill(Emulated):
    real = flashinfer.BatchPrefillWithPagedKVCacheWrapper

    def plan(self, *args: Any, **kwargs: Any) -> None:
        plan = self._planned(args, kwargs)
        self._tables = Tables(
            plan.qo_indptr,
            plan.paged_kv_indptr,
            plan.paged_kv_indices,
            plan.paged_kv_last_page_len,
            plan,
        )

    def run(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        call, plan = self._called(args, kwargs), self._tables.plan
        assert call.out is None or call.out.is_contiguous()
        output = self._tables.run(
            call.q,
            call.paged_kv_cache,
            causal=plan.causal,
            window_left=plan.window_left,
            soft_cap=plan.logits_soft_cap,
        )
        return output if call.out is None else call.out.copy_(output)


class EmulatedDecode(Emulated):
    real = flashinfer.BatchDecodeWithPagedKVCacheWrapper

    def plan(self, *args: Any, **kwargs: Any) -> None:
        self._planned(args, kwargs)
        plan = bound(self.real._plan_impl, args, kwargs)
        one_each = torch.arange(len(plan.last_page_len) + 1, dtype=torch.int32)
        self._tables = Tables(one_each, plan.indptr, plan.indices, plan.last_page_len, plan)

    def run(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        call, plan = self._called(args, kwargs), self._tables.plan
        output = self._tables.run(
            call.q,
            call.paged_kv_cache,
            causal=False,
            window_left=plan.window_left,
            soft_cap=plan.logits_soft_cap,
        )
        return output if call.out is None else call.out.copy_(output)


class EmulatedPod(Emulated):
    real = flashinfer.PODWithPagedKVCacheWrapper

    def plan(self, *args: Any, **kwargs: Any) -> None:
        plan = self._planned(args, kwargs)
        one_each = torch.arange(len(plan.last_page_len) + 1, dtype=torch.int32)
        self._tables = Tables(one_each, plan.indptr, plan.indices, plan.last_page_len, plan)

    def run(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        call = self._called(args, kwargs)
        assert call.kv_layout_p == "NHD"
        prompt = attend(
            call.q_p,
            call.k_p,
            call.v_p,
            causal=call.causal_p,
            sm_scale=call.sm_scale_p,
            window_left=call.window_left_p,
        )
        window_left = self._tables.plan.window_left
        return prompt, self._tables.run(
            call.q_d, call.paged_kv_cache_d, causal=False, window_left=window_left
        )


class EmulatedBatchPod(Emulated):
    real = flashinfer.BatchPODWithPagedKVCacheWrapper

    def plan(self, *args: Any, **kwargs: Any) -> None:
        plan = self._planned(args, kwargs)
        self._prompt, self._decode = (
            Tables(*(getattr(plan, f"{name}_{side}") for name in POD_TABLES), plan) for side in "pd"
        )

    def run(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        call = self._called(args, kwargs)
        window_left = self._prompt.plan.window_left
        return (
            self._prompt.run(call.q_p, call.paged_kv_cache_p, causal=call.causal_p, window_left=window_left),
            self._decode.run(call.q_d, call.paged_kv_cache_d, causal=False, window_left=window_left),
        )


POD_TABLES = ("qo_indptr", "kv_indptr", "kv_indices", "last_page_len")


class EmulatedWrappers:
    """A WrapperFactory; keeps what it made."""

    def __init__(self) -> None:
        self.made: list[Emulated] = []

    def _make(self, kind: type[Emulated]) -> Emulated:
        self.made.append(kind())
        return self.made[-1]

    def prefill(self) -> Emulated:
        return self._make(EmulatedPrefill)

    def decode(self) -> Emulated:
        return self._make(EmulatedDecode)

    def pod(self) -> Emulated:
        return self._make(EmulatedPod)

    def batch_pod(self) -> Emulated:
        return self._make(EmulatedBatchPod)

    def count(self, kind: type[Emulated]) -> tuple[int, int]:
        """Plans and runs of all wrappers of a kind."""
        those = [wrapper for wrapper in self.made if type(wrapper) is kind]
        return sum(wrapper.num_plans for wrapper in those), sum(wrapper.num_runs for wrapper in those)
