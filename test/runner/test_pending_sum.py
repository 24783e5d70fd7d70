"""A range that ends where a layer left its sum over tensor ranks to the next one gives the sum."""

from __future__ import annotations

import pytest
import torch
from sglang.srt.model_executor.forward_batch_info import PPProxyTensors

from sglang_layered.upstream import models
from sglang_layered.upstream.models import with_pending_sum


@pytest.fixture(autouse=True)
def two_equal_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "tensor_model_parallel_all_reduce", lambda rows: rows * 2)


@pytest.mark.parametrize(("mark", "factor"), [(True, 2), (False, 1), (None, 1)])
def test_marked_rows_are_summed_once(mark: bool | None, factor: int) -> None:
    hidden, residual = torch.ones(3, 4), torch.full((3, 4), 5.0)
    if mark is not None:
        hidden._sglang_needs_allreduce_fusion = mark  # type: ignore[attr-defined]
    rows = with_pending_sum(with_pending_sum(PPProxyTensors({"hidden_states": hidden, "residual": residual})))
    assert torch.equal(rows["hidden_states"], torch.full((3, 4), float(factor)))
    assert torch.equal(rows["residual"], residual)
