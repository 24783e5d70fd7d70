"""Pair and POD attention equal an FP64 reference: wrappers emulated in torch, and the real ones on a GPU."""

from __future__ import annotations

from dataclasses import replace
from unittest.mock import create_autospec

import flashinfer
import pytest
import torch
from flashinfer_emulation import (
    EmulatedBatchPod,
    EmulatedDecode,
    EmulatedPod,
    EmulatedPrefill,
    EmulatedWrappers,
)
from hypothesis import given, settings
from sglang_layered_kernels.group_attention import FlashInferWrappers, PagedPairAttention, PodAttention
from sglang_layered_kernels.group_attention.bench import cases
from sglang_layered_kernels.group_attention.reference import group_attention_reference

from group_cases import MATRIX, Case, Sizes, sizes
from sglang_layered.errors import UnsupportedError

KINDS = [PagedPairAttention, PodAttention]
BF16_TOLERANCE = 2e-2  # unit-variance values; bf16 keeps 8 bits
SMALL = Sizes(16, ((20, 9), (0, 4)), (1, 17, 40))


def attend(kind: type, case: Case) -> torch.Tensor:
    attention = kind(case.shape, EmulatedWrappers())
    attention.plan(*case.tables())
    return attention.run(case.q, case.kv_cache)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", MATRIX, ids=str)
def test_matrix_equals_the_reference(kind: type, sizes: Sizes) -> None:
    case = Case(sizes)
    torch.testing.assert_close(attend(kind, case), case.reference(), rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=30)
@given(sizes=sizes())
def test_random_cases_equal_the_reference(kind: type, sizes: Sizes) -> None:
    case = Case(sizes)
    torch.testing.assert_close(attend(kind, case), case.reference(), rtol=0, atol=1e-10)


def test_the_pair_caps_scores_and_pod_refuses() -> None:
    case = Case(replace(SMALL, soft_cap=3.0))
    torch.testing.assert_close(attend(PagedPairAttention, case), case.reference(), rtol=0, atol=1e-10)
    with pytest.raises(UnsupportedError, match="soft cap"):
        PodAttention(case.shape, EmulatedWrappers())


def test_pod_refuses_more_heads_than_its_decode_tile() -> None:
    shape = Case(replace(SMALL, group=32)).shape
    with pytest.raises(UnsupportedError, match="at most 16 query heads"):
        PodAttention(shape, EmulatedWrappers())


def test_reference_of_one_query_on_equal_keys_is_the_mean_of_the_values_it_sees() -> None:
    keys, values = torch.zeros(6, 1, 2), torch.arange(12.0).view(6, 1, 2)
    table = torch.tensor([[5, 3, 1, 0]])
    output = group_attention_reference(
        torch.ones(2, 1, 2), (keys, values), table, [0], [2], [4], scale=1.0, window_left=2
    )
    assert output[0, 0].tolist() == values[[5, 3, 1], 0].double().mean(0).tolist()
    assert output[1, 0].tolist() == values[[3, 1, 0], 0].double().mean(0).tolist()


def test_a_sink_of_the_reference_is_a_key_without_a_value() -> None:
    keys, values, table = torch.zeros(3, 1, 2), torch.arange(6.0).view(3, 1, 2), torch.tensor([[0, 1, 2]])
    sinks = torch.tensor([0.0])
    output = group_attention_reference(
        torch.ones(1, 1, 2), (keys, values), table, [0], [1], [3], scale=1.0, sinks=sinks
    )
    torch.testing.assert_close(output[0, 0], values[:, 0].double().sum(0) / 4)


def test_the_pair_plans_a_prompt_once_and_decode_every_step() -> None:
    wrappers = EmulatedWrappers()
    case = Case(SMALL)
    attention = PagedPairAttention(case.shape, wrappers)
    prompt, decode = case.tables()
    for _ in range(3):
        attention.plan(prompt, decode)
        for _ in range(2):
            attention.run(case.q, case.kv_cache)
    assert wrappers.count(EmulatedPrefill) == (1, 6)
    assert wrappers.count(EmulatedDecode) == (3, 6)
    attention.plan(*case.tables())
    assert wrappers.count(EmulatedPrefill) == (2, 6)


def test_pod_takes_the_kernel_for_one_prompt_or_for_several() -> None:
    wrappers = EmulatedWrappers()
    case, alone = Case(SMALL), Case(replace(SMALL, prompts=((20, 9),)))
    attention = PodAttention(case.shape, wrappers)
    for now in (alone, case, alone):
        attention.plan(*now.tables())
        output = attention.run(now.q, now.kv_cache)
        torch.testing.assert_close(output, now.reference(), rtol=0, atol=1e-10)
    assert wrappers.count(EmulatedPod) == (2, 2)
    assert wrappers.count(EmulatedBatchPod) == (1, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_were_not_planned_are_an_error(kind: type) -> None:
    case = Case(SMALL)
    attention = kind(case.shape, EmulatedWrappers())
    attention.plan(*case.tables())
    with pytest.raises(AssertionError, match="query rows"):
        attention.run(case.q[:-1], case.kv_cache)


@pytest.mark.parametrize("maker", ["prefill", "decode", "pod", "batch_pod"])
def test_wrappers_are_made_with_arguments_that_flashinfer_has(
    maker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {
        "prefill": "BatchPrefillWithPagedKVCacheWrapper",
        "decode": "BatchDecodeWithPagedKVCacheWrapper",
        "pod": "PODWithPagedKVCacheWrapper",
        "batch_pod": "BatchPODWithPagedKVCacheWrapper",
    }
    checked = create_autospec(getattr(flashinfer, names[maker]))
    monkeypatch.setattr(flashinfer, names[maker], checked)
    made = getattr(FlashInferWrappers(torch.empty(1), use_tensor_cores=True), maker)()
    assert made is checked.return_value


def test_benchmark_has_a_case_that_runs_anywhere() -> None:
    [case] = cases("cpu")
    assert case.run().shape == (34, 4, 64)
    pairs = 32 * 33 // 2 + 40 + 50
    assert case.num_flops == 4 * pairs * 4 * 64
    assert case.num_bytes == 4 * 64 * (2 * 34 * 4 + 2 * (32 + 40 + 50) * 2)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", MATRIX, ids=str)
def test_flashinfer_equals_the_reference_on_a_gpu(kind: type, sizes: Sizes) -> None:
    case = Case(sizes, torch.bfloat16, "cuda")
    workspace = torch.zeros(256 << 20, dtype=torch.uint8, device="cuda")
    attention = kind(case.shape, FlashInferWrappers(workspace, use_tensor_cores=sizes.group >= 4))
    for _ in range(2):
        attention.plan(*case.tables())
        output = attention.run(case.q, case.kv_cache)
        torch.testing.assert_close(
            output.double(), case.reference(), rtol=BF16_TOLERANCE, atol=BF16_TOLERANCE
        )
