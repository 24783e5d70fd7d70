"""The roofline against figures worked out by hand and against the table of anchors it was made from."""

from __future__ import annotations

import pytest

from sglang_layered.gpu.roofline import (
    COVERAGES,
    GPT_OSS_20B,
    QWEN3_30B_A3B,
    Gpu,
    ModelShape,
    PromptBound,
    PromptRows,
    chunked_bound,
    layered_bound,
    paper_coverage,
    step_bound,
    uniform_coverage,
)

H200 = Gpu()
TOY = ModelShape(
    num_layers=2,
    hidden_size=10,
    num_experts=4,
    num_experts_per_token=1,
    expert_size=5,
    num_heads=2,
    num_kv_heads=1,
    head_size=3,
    vocab_size=100,
)


def test_sizes_of_the_two_models() -> None:
    assert QWEN3_30B_A3B.expert_params * 2 == 9_437_184  # 3 * 2048 * 768 * 2 bytes
    assert QWEN3_30B_A3B.expert_layer_bytes == 128 * 9_437_184  # 1.208 GB
    assert 48 * QWEN3_30B_A3B.expert_layer_bytes == pytest.approx(57.98e9, rel=1e-4)
    assert 48 * QWEN3_30B_A3B.kv_layer_bytes == 96 * 1024
    assert 24 * GPT_OSS_20B.expert_layer_bytes == pytest.approx(38.22e9, rel=1e-3)


def test_toy_decode_step_by_hand() -> None:
    """Slow memory: everything is bytes. 1 byte takes 1 s, a FLOP takes nothing."""
    gpu = Gpu(bytes_per_s=1.0, flop_per_s=1e30)
    # dense: 2*10*3*(2+1) + 4*10 = 220 parameters, 440 bytes; experts: one row touches 1/4 of 4*150*2 = 1200;
    # KV: 7 tokens * 2*1*3*2 bytes = 84; twice, then 2*100*10 bytes of the output matrix
    assert step_bound(TOY, gpu, uniform_coverage, 1, 7).time_s == 2 * (440 + 300 + 84) + 2000
    assert step_bound(TOY, gpu, uniform_coverage, 1, 7).expert_bytes == 600


def test_toy_prompt_step_by_hand() -> None:
    """Slow arithmetic: everything is FLOP. The prompt's 4 rows go through one of the two layers, alone."""
    gpu = Gpu(bytes_per_s=1e30, flop_per_s=1.0)
    # 4 rows: 2*220*4 dense, 2*1*150*4 experts, attention 4*2*3 * 4 rows * 2 tokens on average
    bound = step_bound(TOY, gpu, uniform_coverage, 0, 7, PromptRows(num_rows=4, num_layers=1))
    assert bound.time_s == pytest.approx(1760 + 1200 + 192)


@pytest.mark.parametrize(
    ("coverage", "rows", "milliseconds"),
    [
        ("uniform", 1, 1.5),
        ("uniform", 8, 6.4),
        ("uniform", 64, 16.8),
        ("uniform", 256, 26.2),
        ("paper", 8, 5.5),
        ("paper", 16, 7.7),
        ("paper", 64, 12.9),
        ("paper", 128, 18.2),
    ],
)
def test_decode_step_of_the_anchors(coverage: str, rows: int, milliseconds: float) -> None:
    bound = step_bound(QWEN3_30B_A3B, H200, COVERAGES[coverage], rows, 2048)
    assert 1000 * bound.time_s == pytest.approx(milliseconds, abs=0.06)


def in_the_units_of_the_anchors(bound: PromptBound) -> tuple[float, float, float]:
    return 1000 * bound.ttft_s, 1000 * bound.worst_step_s, bound.expert_bytes / 1e9


@pytest.mark.parametrize(
    ("coverage", "rows", "num_groups", "ttft_ms", "worst_ms", "gigabytes"),
    [
        ("paper", 0, 1, 90, 90, 57),
        ("paper", 0, 16, 92, 5.8, 57),
        ("paper", 8, 16, 174, 10.8, 353),
        ("paper", 16, 16, 206, 12.9, 466),
        ("paper", 16, 4, 114, 28.5, 139),
        ("paper", 64, 16, 287, 17.9, 658),
        ("uniform", 16, 16, 241, 15.1, 618),
        ("uniform", 64, 4, 144, 36, 229),
    ],
)
def test_layered_prompt_of_the_anchors(
    coverage: str, rows: int, num_groups: int, ttft_ms: float, worst_ms: float, gigabytes: float
) -> None:
    bound = layered_bound(
        QWEN3_30B_A3B,
        H200,
        COVERAGES[coverage],
        prompt_tokens=8192,
        num_groups=num_groups,
        decode_rows=rows,
    )
    assert in_the_units_of_the_anchors(bound) == pytest.approx((ttft_ms, worst_ms, gigabytes), abs=0.6)


@pytest.mark.parametrize(
    ("coverage", "rows", "chunk", "ttft_ms", "worst_ms", "gigabytes"),
    [
        ("paper", 16, 512, 263, 18, 839),
        ("paper", 16, 2048, 108, 33, 222),
        ("paper", 64, 512, 309, 21, 876),
        ("uniform", 16, 512, 283, 20, 928),
    ],
)
def test_chunked_prompt_of_the_anchors(
    coverage: str, rows: int, chunk: int, ttft_ms: float, worst_ms: float, gigabytes: float
) -> None:
    bound = chunked_bound(
        QWEN3_30B_A3B, H200, COVERAGES[coverage], prompt_tokens=8192, chunk_tokens=chunk, decode_rows=rows
    )
    assert in_the_units_of_the_anchors(bound) == pytest.approx((ttft_ms, worst_ms, gigabytes), abs=0.6)


def test_coverage_of_one_row_is_k_of_e_and_of_many_rows_all() -> None:
    for coverage in (uniform_coverage, paper_coverage):
        assert coverage(QWEN3_30B_A3B, 0, 1) == pytest.approx(8 / 128)
        assert coverage(QWEN3_30B_A3B, 0, 0) == 0.0
    assert uniform_coverage(QWEN3_30B_A3B, 8192, 0) == pytest.approx(1.0)
    assert paper_coverage(QWEN3_30B_A3B, 8192, 0) == pytest.approx(0.985)
    assert paper_coverage(QWEN3_30B_A3B, 4, 0) == pytest.approx(0.21)
