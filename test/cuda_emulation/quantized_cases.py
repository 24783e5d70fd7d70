"""A quantized model on the emulated GPU, in a worker."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from sglang.srt.layers.quantization import QUANTIZATION_METHODS

import scenario
from harness import SteppedScheduler
from quantized_checks import FLAGS, asked_for, check_ways, one_by_one

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SERVER: dict[str, Any] = {
    "attention_backend": "fa3",
    "page_size": 1,
    "layered_execution": "fused",
    "moe_runner_backend": "auto",
    "disable_cuda_graph": True,
    "max_running_requests": 16,
}


def check(case: dict[str, Any]) -> dict[str, Any]:
    """What is seen of a quantized model, and the tokens of stock scheduling."""
    for config in set(QUANTIZATION_METHODS.values()):
        config.get_supported_act_dtypes = classmethod(lambda cls: DTYPES)
    stepped = SteppedScheduler(Path(case["model"]), **scenario.FLAGS | FLAGS | SERVER | case["flags"])
    asked = asked_for()
    seen, tokens = check_ways(stepped, asked)
    seen.equal_alone = one_by_one(stepped, asked) == tokens
    return asdict(seen) | {"tokens": tokens}
