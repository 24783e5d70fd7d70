"""Where a group's layers are not captured, for one reason; and what is copied in where they are."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.model_executor.model_runner import ModelRunnerOutput
from sglang.srt.model_executor.runner.decode_cuda_graph_runner import DecodeCudaGraphRunner
from sglang.srt.model_executor.runner_backend.full_cuda_graph_backend import FullCudaGraphBackend

from sglang_layered.runner.layered_runner import LayeredRunner, StepOutput
from sglang_layered.upstream.group_graphs import ROWS, GroupInputs, group_obstacle
from sglang_layered.upstream.models import PipelineRanges

CHANGES: list[tuple[str, str, Any, str]] = [
    ("runner", "decode_cuda_graph_runner", None, "SGLang captures no decode graphs"),
    ("runner", "use_mla_backend", True, "MLA"),
    ("runner", "kv_cache_dtype", torch.float8_e4m3fn, "KV cache is quantized"),
    ("runner", "layered_expert_watch", object(), "experts are counted"),
    ("runner", "canary_manager", object(), "KV canary"),
    ("config", "is_multimodal", True, "multimodal"),
    ("config", "model_is_mrope", True, "multimodal"),
    ("config", "quantization", "fp8", "weights are quantized"),
    ("args", "tp_size", 2, "between ranks"),
    ("args", "enable_lora", True, "--enable-lora"),
    ("args", "enable_memory_saver", True, "--enable-memory-saver"),
    ("args", "enable_hierarchical_cache", True, "--enable-hierarchical-cache"),
    ("args", "enable_return_routed_experts", True, "ids of experts"),
    ("args", "expert_distribution_recorder_mode", "stat", "experts are counted"),
    ("args", "layered_group_attention", "pod", "not SGLang's backends"),
]


def server() -> dict[str, Any]:
    """A server whose groups are captured."""
    stock = DecodeCudaGraphRunner.__new__(DecodeCudaGraphRunner)
    stock.capture_bs, stock.disable_padding, stock.is_encoder_decoder = [1, 2], False, False
    stock.require_gathered_buffer = stock.use_ngram_embedding = False
    stock.backend = FullCudaGraphBackend.__new__(FullCudaGraphBackend)
    off = ("enable_lora", "enable_memory_saver", "enable_hierarchical_cache", "enable_return_routed_experts")
    args = SimpleNamespace(
        tp_size=1,
        expert_distribution_recorder_mode=None,
        layered_group_attention="auto",
        **dict.fromkeys(off, False),
    )
    config = SimpleNamespace(is_multimodal=False, model_is_mrope=False, quantization=None)
    runner = SimpleNamespace(
        server_args=args,
        model_config=config,
        decode_cuda_graph_runner=stock,
        use_mla_backend=False,
        kv_cache_dtype=torch.bfloat16,
        dtype=torch.bfloat16,
        req_to_token_pool=None,
        canary_manager=None,
    )
    return {"runner": runner, "args": args, "config": config}


@pytest.mark.parametrize(("part", "name", "value", "reason"), CHANGES)
def test_what_was_not_tried_runs_eagerly(part: str, name: str, value: Any, reason: str) -> None:
    ranges = PipelineRanges.__new__(PipelineRanges)
    changed = server()
    assert group_obstacle(changed["runner"], ranges) is None
    setattr(changed[part], name, value)
    assert reason in str(group_obstacle(changed["runner"], ranges))


def test_layers_without_pipeline_stages_run_eagerly() -> None:
    assert "no pipeline stages" in str(group_obstacle(server()["runner"], SimpleNamespace()))  # type: ignore[arg-type]


def rows_of(first: int, count: int) -> Any:
    """A batch of so many rows, its values from `first` on."""
    values = torch.arange(first, first + count)
    return SimpleNamespace(input_ids=values, positions=values + 100, out_cache_loc=values + 200)


class Batch:
    """A prompt's batch, to which somebody may refer weakly."""

    def __init__(self, first: int, count: int) -> None:
        vars(self).update(vars(rows_of(first, count)))


def test_rows_of_a_step_lie_in_the_graphs_memory_and_padding_is_zero() -> None:
    """A prompt's are copied in before its first group, and again when another one was there meanwhile."""
    inputs, one, other = GroupInputs("cpu", 12), Batch(1, 5), Batch(21, 3)
    batch = inputs.batch(12)
    for prompt, decode in (
        (one, rows_of(50, 4)),
        (one, rows_of(60, 2)),
        (other, rows_of(70, 2)),
        (one, rows_of(80, 3)),
    ):
        num_rows = len(prompt.input_ids) + len(decode.input_ids)
        inputs.fill(prompt, decode, num_rows)  # type: ignore[arg-type]
        for name in ROWS:
            expected = [*getattr(prompt, name).tolist(), *getattr(decode, name).tolist()]
            assert getattr(batch, name).tolist() == expected + [0] * (12 - num_rows), name
    one.input_ids += 1000
    inputs.fill(one, rows_of(80, 3), 8)  # type: ignore[arg-type]
    assert batch.input_ids[0] == 1, "once a prompt"


@pytest.mark.parametrize("has_new_weights", [False, True])
def test_new_graphs_of_sglang_bring_new_ones_before_a_step_is_loaded(has_new_weights: bool) -> None:
    runner, done = object.__new__(LayeredRunner), []
    stock = object()
    paths = SimpleNamespace(stock=object() if has_new_weights else stock, renew=lambda: done.append("decode"))
    vars(runner).update(
        decode_paths=paths,
        _model_runner=SimpleNamespace(decode_cuda_graph_runner=stock),
        _ids=None,
        _read_done=None,
        _capture_groups=lambda: done.append("groups"),
        forward=lambda step: done.append("step") or ModelRunnerOutput(StepOutput(None, None, None), False),
    )
    runner.fused(SimpleNamespace())  # type: ignore[arg-type]
    assert done == (["decode", "groups", "step"] if has_new_weights else ["step"])
