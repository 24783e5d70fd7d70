"""The configurations that tokens are compared in, and what a worker is asked for each."""

from __future__ import annotations

from typing import Any

from tiny_models import sized_model, sparse_model, tiny_model

from workers import Workers

FEW_GRAPHS = 2  # layers in the shortest of the start, where a configuration names no other number
LATENT = 0  # instead of a head size: latent attention, DeepSeek's
# With an indexer: see `sparse_model`.
SPARSE = {-1: (8, False, 1), -2: (512, False, 1), -3: (8, True, 4), -4: (512, True, 4)}
NUM_GRAPH_SIZES = 3
ALL = [["fused", None], ["fused", 4], ["sequential", None], ["concurrent", None]]
SHORT = [["fused", None], ["sequential", None]]
GROUP_ROWS = {"layered_graph_group_rows": [128, 512]}
COUNTER = {"enable_metrics": True, "enable_expert_traffic_metrics": True}

DSA = {"attention_backend": "dsa", "page_size": 64}

# name: device, head size or LATENT or a key of SPARSE, flags, ways
CASES: dict[str, tuple[str, int, dict[str, Any], list[list[Any]]]] = {
    "fa3, page 1": (
        "h100",
        64,
        {"attention_backend": "fa3", "page_size": 1, "layered_graph_granularity": None},
        ALL,
    ),
    "fa3, page 16, experts counted": (
        "h100",
        128,
        {"attention_backend": "fa3", "page_size": 16, **COUNTER},
        ALL[:3],
    ),
    "fa3, page 64, bfloat16": (
        "h100",
        64,
        {"attention_backend": "fa3", "page_size": 64, "dtype": "bfloat16", **GROUP_ROWS},
        SHORT,
    ),
    "fa3, latent attention": ("h100", LATENT, {"attention_backend": "fa3", "page_size": 1}, SHORT),
    # Every row of a longer context than the few tokens that it attends to, prompts in three chunks.
    "dsa, few tokens": ("h100", -1, DSA | {"chunked_prefill_size": 128}, SHORT),
    # Prompts that attend to all tokens, with expanded keys, beside decode rows in the latent space.
    "dsa, all tokens": ("h100", -2, DSA, SHORT[:1]),
    # The indexer of GLM-5, a rotary embedding in pairs of neighbours and fused kernels; as in GLM-5.2 layers
    # take over what one before them chose: groups and graphs begin at such layers, too.
    "dsa, few tokens, shared choices": ("h100", -3, DSA | {"chunked_prefill_size": 128}, SHORT),
    # Rows that chose nothing beside rows that did.
    "dsa, all tokens, shared choices": ("h100", -4, DSA, SHORT[:1]),
    "flashinfer, page 1": (
        "h100",
        64,
        {"attention_backend": "flashinfer", "page_size": 1, **GROUP_ROWS},
        ALL,
    ),
    "flashinfer, page 16": ("h100", 128, {"attention_backend": "flashinfer", "page_size": 16}, SHORT),
    "triton, page 1": ("h100", 64, {"attention_backend": "triton", "page_size": 1}, ALL[:3]),
    "triton, page 64": ("h100", 128, {"attention_backend": "triton", "page_size": 64, **GROUP_ROWS}, SHORT),
    "trtllm_mha, page 64, bfloat16": (
        "b200",
        64,
        {"attention_backend": "trtllm_mha", "page_size": 64, "dtype": "bfloat16"},
        [*SHORT, ["concurrent", None]],
    ),
}


def run(workers: Workers, name: str) -> dict[str, Any]:
    """The result of a configuration; it runs once, however many tests ask."""
    device, head_size, flags, ways = CASES[name]
    dtype = flags.get("dtype", "float32")
    if head_size in SPARSE:
        model = sparse_model(*SPARSE[head_size])
    elif head_size == LATENT:
        model = tiny_model("deepseek_v3")
    else:
        model = sized_model("qwen3_moe", head_size, dtype)
    flags = {"layered_graph_granularity": FEW_GRAPHS} | flags
    case = {"kind": "side by side", "model": str(model), "flags": flags, "ways": ways}
    result = workers.on(device).ask(case)
    assert "error" not in result, result["error"] + "\n" + result["log"]
    return result


def granularity_at_start(name: str) -> int | None:
    """Layers in the shortest graphs that a configuration's server captures first."""
    granularity: int | None = CASES[name][2].get("layered_graph_granularity", FEW_GRAPHS)
    return granularity


def group_rows(name: str) -> list[int]:
    """The rows that graphs of a group's layers are captured for."""
    rows: list[int] = CASES[name][2].get("layered_graph_group_rows", [])
    return rows


def num_layers(name: str) -> int:
    """Layers of a configuration's model."""
    return 7 if CASES[name][1] <= LATENT else 8


def runs(workers: Workers, name: str) -> list[tuple[str, int | None, dict[str, Any]]]:
    """Execution, granularity and result of each way that the server has."""
    ways = zip(CASES[name][3], run(workers, name)["ways"], strict=True)
    return [(execution, size, way) for (execution, size), way in ways if "left_out" not in way]
