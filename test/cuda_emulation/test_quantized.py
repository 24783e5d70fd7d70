"""Released quantizations on SGLang's CUDA branches: rows do not depend on rows beside them; or stock's do."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from safetensors.torch import load_file
from tiny_models import quantized_for_cuda

from workers import Workers

NUM_LAYERS, NUM_EXPERTS = 3, 16
SAME_LOGPROB = 1e-4  # float32 moves its last bits; one activation at the next FP8 number moves 1e-3
NO_WEIGHTS = ("input_scale", "weight_shape")


@dataclass(frozen=True)
class Case:
    """How a tiny Qwen3-MoE is stored and served; `wrong` is how far its layers may be from the stored floats.

    Marlin takes rows of 16 bits, and so do FlashInfer's experts.
    """

    method: str | None
    methods: tuple[str, str]
    wrong: tuple[float, float]
    flags: dict[str, Any] = field(default_factory=dict)
    device: str = "h100"
    has_scratch: bool = False


HALF = {"dtype": "float16"}
WITHOUT_OVERLAP = {"disable_overlap_schedule": True}
MARLIN = {"fp4_gemm_runner_backend": "marlin"}
FLASHINFER = {"moe_runner_backend": "flashinfer_cutlass", "fp4_gemm_runner_backend": "flashinfer_cutlass"}
ATTENTION = {"h100": "fa3", "b200": "triton"}
FP8_WRONG, FP16_WRONG, FP4_WRONG = (0.04, 0.09), (1e-3, 1e-3), (0.12, 0.2)
CASES = {
    "compressed-tensors, FP8 with a scale a row": Case(
        "compressed-fp8", ("CompressedTensorsW8A8Fp8", "CompressedTensorsW8A8Fp8MoE"), FP8_WRONG
    ),
    "compressed-tensors, 4-bit weights": Case(
        "compressed-w4a16",
        ("CompressedTensorsWNA16", "CompressedTensorsWNA16MoE"),
        FP16_WRONG,
        HALF,
        has_scratch=True,
    ),
    "FP8 with fixed scales": Case(
        "fp8-tensor", ("Fp8LinearMethod", "Fp8MoEMethod"), FP8_WRONG, WITHOUT_OVERLAP
    ),
    "ModelOpt FP8": Case("modelopt-fp8", ("ModelOptFp8LinearMethod", "ModelOptFp8MoEMethod"), FP8_WRONG),
    "ModelOpt NVFP4 on Hopper": Case(
        "nvfp4",
        ("ModelOptFp4LinearMethod", "ModelOptNvFp4FusedMoEMethod"),
        FP16_WRONG,
        HALF | MARLIN | WITHOUT_OVERLAP,
        has_scratch=True,
    ),
    "ModelOpt NVFP4 on Blackwell": Case(
        "nvfp4",
        ("ModelOptFp4LinearMethod", "ModelOptNvFp4FusedMoEMethod"),
        FP4_WRONG,
        {"dtype": "bfloat16", **FLASHINFER},
        "b200",
    ),
    "W4A8": Case("w4afp8", ("Fp8LinearMethod", "W4AFp8MoEMethod"), FP8_WRONG, has_scratch=True),
}
AT_LOAD = Case(None, ("Fp8LinearMethod", "Fp8MoEMethod"), FP8_WRONG, {"quantization": "fp8"})


def seen_of(workers: Workers, case: Case) -> dict[str, Any]:
    """What a worker saw of a case; it runs once, however many tests ask."""
    model = quantized_for_cuda(case.method, num_layers=NUM_LAYERS)
    floats = quantized_for_cuda(case.method, num_layers=NUM_LAYERS, dequantized=case.method is not None)
    flags = {"attention_backend": ATTENTION[case.device], **case.flags}
    asked = {"kind": "quantized", "model": str(model), "floats": str(floats), "flags": flags}
    result = workers.on(case.device).ask(asked)
    assert "error" not in result, result["error"] + "\n" + result["log"]
    return result


@pytest.fixture(params=CASES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def seen(workers: Workers, name: str) -> dict[str, Any]:
    return seen_of(workers, CASES[name])


def test_tokens_equal_those_of_sglang_in_every_way_to_run(seen: dict[str, Any]) -> None:
    ways = ("groups", "uneven", "one layer a group", "sequential")
    assert seen["equal_stock"] == dict.fromkeys(ways, True)
    assert max(seen["furthest_logprob"].values()) < SAME_LOGPROB
    assert seen["equal_after_drops"] == {"1": True, "2": True}


def test_tokens_do_not_depend_on_the_requests_beside(seen: dict[str, Any]) -> None:
    assert seen["equal_alone"]
    assert seen["furthest_alone"] < SAME_LOGPROB


def test_prefixes_chunks_and_groups_of_each_kind_were_met(seen: dict[str, Any]) -> None:
    assert seen["cached_tokens"] >= 70
    assert seen["num_chunks"] >= 3
    assert {1, 2} <= set(seen["group_sizes"]["uneven"])
    assert seen["group_sizes"]["one layer a group"] == [1]


def test_the_layers_compute_what_the_checkpoint_says_by_the_quantized_method(
    name: str, seen: dict[str, Any]
) -> None:
    assert tuple(seen["methods"]) == CASES[name].methods
    for layer, most in zip(("qkv_proj", "experts"), CASES[name].wrong, strict=True):
        assert most / 10 < seen["wrong"][layer] < most


def test_experts_weigh_what_the_files_say(name: str, seen: dict[str, Any]) -> None:
    """The doctor and the policies read headers. What is loaded has one scale where the files have two."""
    tensors = load_file(quantized_for_cuda(CASES[name].method, num_layers=NUM_LAYERS) / "model.safetensors")
    for layer in range(NUM_LAYERS):
        stored = sum(
            tensor.nbytes
            for tensor_name, tensor in tensors.items()
            if tensor_name.startswith(f"model.layers.{layer}.mlp.experts.")
            and not tensor_name.endswith(NO_WEIGHTS)
        )
        assert seen["bytes_read"][layer] == stored / NUM_EXPERTS
        assert seen["bytes_loaded"][layer] == pytest.approx(stored / NUM_EXPERTS, rel=0.001)


def test_layers_with_scratch_memory_are_found(name: str, seen: dict[str, Any]) -> None:
    """So `--layered-execution concurrent` is refused: two streams would write it at the same time."""
    assert (seen["scratch"] is not None) == CASES[name].has_scratch


def test_quantized_at_load_sglang_itself_answers_otherwise_alone(workers: Workers) -> None:
    """What the warning at start says: experts take one activation scale for all rows of a step."""
    seen = seen_of(workers, AT_LOAD)
    assert tuple(seen["methods"]) == AT_LOAD.methods
    assert seen["furthest_alone"] > 0.1
    for layer, most in zip(("qkv_proj", "experts"), AT_LOAD.wrong, strict=True):
        assert most / 10 < seen["wrong"][layer] < most
    bytes_of_a_weight = seen["bytes_loaded"][0] / (3 * 128 * 128)
    assert bytes_of_a_weight == pytest.approx(1, rel=0.001)
    assert seen["bytes_read"] == pytest.approx(seen["bytes_loaded"], rel=0.001)
