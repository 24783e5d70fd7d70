"""What the kernels of group attention have in common: planned once a step, run once a layer."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from sglang_layered_kernels.group_attention.plan import AttentionShape, PageTables

PagedCache = tuple[torch.Tensor, torch.Tensor]  # keys, values: each [pages, page_size, kv heads, head_dim]


class GroupAttention(ABC):
    """Attention of rows `[prompt; decode]`; a prompt's plan is kept while its tables are the same object."""

    def __init__(self, shape: AttentionShape) -> None:
        self._shape = shape
        self._prompt: PageTables | None = None
        self._num_rows = (0, 0)

    def plan(self, prompt: PageTables, decode: PageTables) -> None:
        """Get ready for the layers of one step."""
        if prompt is not self._prompt:
            self._plan_prompt(prompt)
            self._prompt = prompt
        self._plan_step(prompt, decode)
        self._num_rows = (prompt.num_rows, decode.num_rows)

    def run(self, q: torch.Tensor, kv_cache: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """Attend in one layer, whose new keys and values are in the pool already.

        Args:
            q: Contiguous queries [prompt rows + decode rows, heads, head_dim].
            kv_cache: The layer's keys and values, each [slots, kv heads, head_dim].

        Returns:
            Output of q's shape.
        """
        if q.shape[0] != sum(self._num_rows):
            raise AssertionError(
                f"{q.shape[0]} query rows, but {self._num_rows} prompt and decode rows are planned"
            )
        cut = self._num_rows[0]
        keys, values = kv_cache
        return self._attend(q[:cut], q[cut:], (self._shape.paged(keys), self._shape.paged(values)))

    @abstractmethod
    def _plan_prompt(self, prompt: PageTables) -> None:
        """Plan what lasts until the prompt's last group."""

    @abstractmethod
    def _plan_step(self, prompt: PageTables, decode: PageTables) -> None:
        """Plan what lasts one step."""

    @abstractmethod
    def _attend(self, prompt_q: torch.Tensor, decode_q: torch.Tensor, paged: PagedCache) -> torch.Tensor:
        """Output of all rows [prompt rows + decode rows, heads, head_dim]."""
