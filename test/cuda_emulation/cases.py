"""What a worker can be asked."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import draft_cases
import moved_kernels
import quantized_cases
from emulated_0_5_23 import emulate_0_5_23
from emulated_drafts import emulate_drafts
from emulated_flash_attention import emulate_flash_attention
from emulated_flashinfer import emulate_flashinfer
from emulated_graphs import GRAPHS, emulate_graphs
from emulated_kernels import emulate_kernels
from emulated_quantized import emulate_quantized
from emulated_sparse import emulate_sparse_attention
from emulated_triton_attention import emulate_triton_attention
from emulated_trtllm import emulate_trtllm
from faults import FAULTS, GROUP_FAULTS, planted
from memory_watch import WATCH
from resolution import refusals, resolve
from scenario import Emulated


def run(case: dict[str, Any]) -> dict[str, Any]:
    if case["kind"] in ("resolve", "refusals"):
        return {"resolve": resolve, "refusals": refusals}[case["kind"]](case)
    from sglang.srt.layers.moe.moe_runner.triton_utils.fused_moe import fused_experts

    if moved_kernels.IS_0_5_23:
        emulate_0_5_23()
    emulate_kernels()
    emulate_graphs()
    for emulate_attention in (
        emulate_flash_attention,
        emulate_sparse_attention,
        emulate_flashinfer,
        emulate_triton_attention,
        emulate_trtllm,
    ):
        emulate_attention()
    if case["kind"] == "quantized":
        emulate_quantized(fused_experts)
        return quantized_cases.check(case)
    if case["kind"] == "drafts":
        emulate_drafts(case["flags"]["speculative_algorithm"])
        return draft_cases.check(case)
    return {"side by side": side_by_side, "planted": with_faults}[case["kind"]](case)


def side_by_side(case: dict[str, Any]) -> dict[str, Any]:
    """Tokens alone, and beside a cohort in each of the ways [execution, granularity or none].

    With a granularity the layered graphs are captured anew; else those of the start are used.
    """
    emulated = Emulated.start(Path(case["model"]), **case["flags"])
    result: dict[str, Any] = {
        "num_captures": GRAPHS.num_captures,
        "num_captures_when_ready": emulated.num_captures_when_ready,
        "alone": emulated.alone(),
        "ways": [],
    }
    for execution, granularity in case["ways"]:
        before = GRAPHS.num_captures
        if execution == "concurrent" and emulated.side_stream is None:
            result["ways"].append({"left_out": "this server has no second stream"})
            continue
        emulated.use(execution, granularity)
        result["ways"].append(emulated.beside() | {"num_captures": GRAPHS.num_captures - before})
        if "overtaken" not in result:
            result["overtaken"] = emulated.overtaken()
    return result


def with_faults(case: dict[str, Any]) -> dict[str, Any]:
    """What the harness reports of a run with each fault, and of one without any before."""
    emulated = Emulated.start(Path(case["model"]), **case["flags"])
    result: dict[str, Any] = {"alone": emulated.alone(), "faults": {}}
    emulated.use("fused")
    result["none, groups by graphs"] = emulated.beside()
    for name in GROUP_FAULTS:
        result["faults"][name] = _with_fault(name, emulated)
    emulated.runner.group_graphs = None
    result["none"] = emulated.beside()
    gc.collect()
    gc.disable()
    emulated.beside()
    result["num_parked_kept"] = WATCH.alive("prompt's hidden_states")
    gc.enable()
    for name, (execution, _) in FAULTS.items():
        emulated.use(execution)
        result["faults"][name] = _with_fault(name, emulated)
    return result


def _with_fault(name: str, emulated: Emulated) -> dict[str, Any]:
    try:
        with planted(name, emulated):
            return emulated.beside()
    except AssertionError as error:
        return {"error": str(error)}
