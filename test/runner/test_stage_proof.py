"""Where layers are made for their neighbours, a start looks at pipeline stages as at a list of layers."""

from __future__ import annotations

from typing import Any

import pytest
from sglang.srt.model_executor.forward_batch_info import PPProxyTensors

from harness import SteppedScheduler
from sglang_layered.errors import UnsupportedError
from sglang_layered.upstream import probe
from sglang_layered.upstream.models import PipelineRanges
from sglang_layered.upstream.probe import proved_ranges, ranges_of, stage_ranges

FORGETFUL = 3


@pytest.fixture
def model_runner(stepped: SteppedScheduler, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(probe.boundaries, "PROVES_STAGES", True)
    return stepped.scheduler.tp_worker.model_runner


def test_a_sound_model_is_looked_at_once(model_runner: Any) -> None:
    made = ranges_of(model_runner)
    assert isinstance(made, PipelineRanges)
    assert ranges_of(model_runner) is made, "not again for new weights"
    assert stage_ranges(model_runner).num_layers == made.num_layers
    vars(model_runner.model).pop("layered_ranges")


def test_a_cut_that_loses_something_is_refused(model_runner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run = PipelineRanges._forward

    def forgetting(ranges: Any, batch: Any, layers: Any, rows: PPProxyTensors | None, *others: Any) -> Any:
        if rows is not None and layers.start == FORGETFUL:
            rows = PPProxyTensors(rows.tensors | {"residual": rows["residual"] * 0})
        return run(ranges, batch, layers, rows, *others)

    monkeypatch.setattr(PipelineRanges, "_forward", forgetting)
    with pytest.raises(UnsupportedError, match=f"layer {FORGETFUL} takes more from the layers before it"):
        proved_ranges(model_runner)
    with pytest.raises(UnsupportedError, match="other rows one by one than at once"):
        stage_ranges(model_runner)
