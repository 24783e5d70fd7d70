"""Which attention a server on a CPU gets, and what it refuses (no server is started)."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sglang.srt.layers.moe.fused_moe_triton.layer import FusedMoE
from sglang.srt.layers.moe.moe_runner.base import MoeRunnerConfig
from sglang.srt.utils import is_cuda, support_triton
from sglang_layered_kernels.cpu.experts import gated_silu, gated_situ
from tiny_models import tiny_model

from harness import SteppedScheduler
from release_differences import with_native_kernels
from server_doors import LAYERED, check
from sglang_layered.errors import UnsupportedError
from sglang_layered.upstream import cpu_experts
from sglang_layered.upstream.cpu_choice import CPU_ATTENTION, check_cpu_attention
from sglang_layered.upstream.releases import arguments

OURS = ("--attention-backend", CPU_ATTENTION)
STOCK = ("--attention-backend", "torch_native")


def test_it_is_the_default_of_layered_mode_and_stock_stays_stock(tiny_qwen3_moe: Path) -> None:
    backends = arguments.attention_backends_of(check(tiny_qwen3_moe, *LAYERED))
    assert backends == (CPU_ATTENTION, CPU_ATTENTION)
    assert check(tiny_qwen3_moe).attention_backend == "torch_native"


def test_it_can_be_had_in_chunked_mode_and_another_in_layered_mode(tiny_qwen3_moe: Path) -> None:
    assert check(tiny_qwen3_moe, *OURS).attention_backend == CPU_ATTENTION
    assert check(tiny_qwen3_moe, *LAYERED, *STOCK).attention_backend == "torch_native"
    assert (
        check(tiny_qwen3_moe, *LAYERED, "--decode-attention-backend", "torch_native").attention_backend
        in STOCK
    )


def test_native_kernels_stay_the_default_where_they_are(
    tiny_qwen3_moe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_native_kernels(monkeypatch)
    assert check(tiny_qwen3_moe, *LAYERED).attention_backend == "intel_amx"
    assert check(tiny_qwen3_moe, *LAYERED, *OURS).attention_backend == CPU_ATTENTION


@pytest.mark.parametrize("arch", ["gpt_oss", "gemma2", "gemma4", "deepseek_v3", "exaone_moe"])
def test_what_torch_native_leaves_out_is_served_by_ours(arch: str) -> None:
    model = tiny_model(arch)
    assert check(model, *LAYERED).attention_backend == CPU_ATTENTION
    assert check(model, *OURS).attention_backend == CPU_ATTENTION


@pytest.mark.parametrize(("arch", "has"), [("gemma2", "soft caps"), ("deepseek_v3", "latent attention")])
def test_with_torch_native_it_is_refused(arch: str, has: str) -> None:
    with pytest.raises(
        UnsupportedError, match=rf"{has}.* torch_native .*; use --attention-backend cpu_paged"
    ):
        check(tiny_model(arch), *LAYERED, *STOCK)


def test_it_is_the_default_of_layered_mode_with_drafts_too(tiny_qwen3_moe: Path) -> None:
    drafts = ("--speculative-algorithm", "NGRAM")
    assert check(tiny_qwen3_moe, *LAYERED, *drafts).attention_backend == CPU_ATTENTION
    assert check(tiny_qwen3_moe, *OURS, *drafts).attention_backend == CPU_ATTENTION
    with pytest.raises(UnsupportedError, match=r"torch_native: it verifies no drafts; use cpu_paged"):
        check(tiny_qwen3_moe, *LAYERED, *STOCK, *drafts)


def test_on_a_gpu_the_flag_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    args = SimpleNamespace(device="cuda")
    monkeypatch.setattr(arguments, "attention_backends_of", lambda _: (CPU_ATTENTION,) * 2)
    says = "--attention-backend cpu_paged: .*the device is cuda; leave the flag out"
    with pytest.raises(UnsupportedError, match=says):
        check_cpu_attention(args)
    monkeypatch.setattr(arguments, "attention_backends_of", lambda _: ("triton", "triton"))
    check_cpu_attention(args)


def test_sglang_takes_no_triton_for_it() -> None:
    from sglang.srt.mem_cache import allocation
    from sglang.srt.model_executor import forward_batch_info

    from sglang_layered.upstream import cpu_attention

    cpu_attention._keep_triton_out()
    for module in (allocation, forward_batch_info):
        assert not module.support_triton(CPU_ATTENTION)
        assert module.support_triton("flashinfer") is support_triton("flashinfer")
        assert not module.support_triton("torch_native")


@pytest.mark.skipif(is_cuda(), reason="on a GPU the shared scheduler has another backend")
def test_experts_come_with_it(stepped: SteppedScheduler) -> None:
    model = stepped.scheduler.tp_worker.model_runner.model
    methods = [module.quant_method for module in model.modules() if isinstance(module, FusedMoE)]
    assert methods and all(method._forward_method.func is cpu_experts._forward for method in methods)


@pytest.mark.parametrize(
    "setting",
    [
        {"is_gated": False},
        {"activation": "relu2"},
        {"no_combine": True},
        {"swiglu_limit": 7.0},
        {"gemm1_clamp_limit": 7.0},
        {"gemm1_alpha": 1.7},
        {"gemm1_alpha": 1.7, "gemm1_clamp_limit": 7.0, "activation": "gelu"},
    ],
)
def test_experts_that_ours_do_not_know_stay_sglangs(setting: dict[str, Any]) -> None:
    assert cpu_experts._gate(MoeRunnerConfig()) is gated_silu
    assert cpu_experts._gate(MoeRunnerConfig(**setting)) is None


@pytest.mark.parametrize(
    ("setting", "numbers"),
    [
        ({"gemm1_alpha": 3.0, "gemm1_clamp_limit": 25.0}, {"beta": 3.0, "limit": 25.0}),
        ({}, {"beta": 4.0, "limit": None}),
    ],
)
def test_kimi_k3s_experts_are_ours(setting: dict[str, Any], numbers: dict[str, Any]) -> None:
    gate: Any = cpu_experts._gate(MoeRunnerConfig(activation="situ", **setting))
    assert gate.func is gated_situ
    assert gate.keywords == numbers
