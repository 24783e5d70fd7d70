"""Our attention for CPUs in draft models, which SGLang makes by tables of names of its own.

Upstream: srt/speculative/draft_utils.py `DraftBackendFactory`; srt/speculative/eagle_worker_v2.py
`EagleDraftWorker.draft_forward`, which reads `attn_backends`.
"""

from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import torch
from sglang.srt.speculative.draft_utils import DraftBackendFactory

from sglang_layered.upstream.cpu_attention import CpuAttention
from sglang_layered.upstream.cpu_choice import CPU_ATTENTION
from sglang_layered.upstream.releases import forwarding


class DraftStepAttention(CpuAttention):
    """One step of a draft model that grows branches behind each request; rows are branches."""

    def forward_decode(
        self, q: torch.Tensor, k: Any, v: Any, layer: Any, forward_batch: Any, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """As in any step."""
        if self.use_sliding_window_kv_pool:  # the slots are another step's each time, the plan is made once
            self.swa_out_cache_loc = self._in_window_pool(forward_batch.out_cache_loc)
        return super().forward_decode(q, k, v, layer, forward_batch, *args, **kwargs)


class DraftSteps:
    """Attention of each step of a draft model but the last, which runs no layer.

    SGLang gives each of a request's `topk` branches a run of `num_steps` slots behind the request's own ones;
    `seq_lens` does not count them. The first token of a branch comes without a step.
    """

    def __init__(self, model_runner: Any, topk: int, num_steps: int) -> None:
        self._topk, self._num_steps = topk, num_steps
        self._table = model_runner.req_to_token_pool.req_to_token
        self.attn_backends = [DraftStepAttention(model_runner) for _ in range(num_steps - 1)]

    def init_forward_metadata(self, forward_batch: Any) -> None:
        """Note where the tokens that each branch sees lie, in all steps."""
        requests = [
            (self._table[row], length)
            for row, length in zip(
                forward_batch.req_pool_indices.tolist(), forward_batch.seq_lens.tolist(), strict=True
            )
        ]
        for step, backend in enumerate(self.attn_backends):
            tables = []
            for table, length in requests:
                for first in range(length, length + self._topk * self._num_steps, self._num_steps):
                    tables.append(torch.cat([table[:length], table[first : first + step + 1]]))
            backend.see(tables, [1] * len(tables))


def take_drafts() -> None:
    """Let the factory of drafts' attention know ours by its name."""
    create = DraftBackendFactory._create_backend
    if hasattr(create, "__wrapped__"):
        return

    @wraps(create)
    def create_known(
        factory: Any, flag: str, known: dict[str, Callable[[], Any]], error: str, **how: Any
    ) -> Any:
        is_of_steps = known["triton"] == factory._create_triton_decode_backend
        make = partial(_steps if is_of_steps else _extends, factory)
        named = (lambda: (CPU_ATTENTION, make())) if forwarding.DRAFT_ATTENTION_IS_NAMED else make
        return create(factory, flag, {**known, CPU_ATTENTION: named}, error, **how)

    DraftBackendFactory._create_backend = create_known


def _steps(factory: Any) -> DraftSteps:
    return DraftSteps(factory.draft_model_runner, factory.topk, factory.speculative_num_steps)


def _extends(factory: Any) -> CpuAttention:
    return CpuAttention(factory.draft_model_runner)
