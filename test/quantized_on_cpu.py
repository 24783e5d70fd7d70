"""Lets SGLang's CPU methods of quantized weights run without AMX, on the references of kernels/cpu.

SGLang's own branches run, with everything about them but the native ops and their layout of the weights. It
is for a process that serves tiny models and ends: nothing is put back.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from sglang.srt.arg_groups import overrides
from sglang.srt.hardware_backend.cpu.quantization import awq_kernels, gptq_kernels
from sglang.srt.layers import quantization
from sglang.srt.layers.attention import torch_native_backend
from sglang.srt.layers.quantization import fp8, mxfp4, w8a8_int8
from sglang_layered_kernels.cpu.quantized import Activations, QuantizedOps
from torch.nn import functional

ASK_FOR_AMX: tuple[ModuleType, ...] = (fp8, w8a8_int8, mxfp4)
PACK_WEIGHTS: tuple[ModuleType, ...] = (*ASK_FOR_AMX, awq_kernels, gptq_kernels)
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def run_without_amx() -> None:
    """Make SGLang take its CPU methods, in float32, and leave weights as they are loaded."""
    for module in ASK_FOR_AMX:
        module._is_cpu_amx_available = True  # type: ignore[attr-defined]
    for module in PACK_WEIGHTS:
        module._amx_process_weight_after_loading = _leave_as_loaded  # type: ignore[attr-defined]
    for name, config in quantization.CPU_QUANTIZATION_METHODS.items():
        quantization.QUANTIZATION_METHODS[name] = config
        config.get_supported_act_dtypes = classmethod(lambda cls: DTYPES)
    _let_gpt_oss_compute_in_float32()


def use_ops(activations: Activations = Activations.KEPT, *, in_float64: bool = False) -> None:
    """Compute quantized layers with the references, for models that are loaded from now on.

    In float64 linear layers and attention that are not quantized compute in float64 as well: what reaches a
    row's rounding to 8 bits is then the same, whatever rows are beside it.
    """
    ops = QuantizedOps(activations, torch.float64 if in_float64 else torch.float32)
    for name in QuantizedOps.NAMES:
        setattr(torch.ops.sgl_kernel, name, getattr(ops, name))
    functional.linear = _linear64 if in_float64 else LINEAR
    torch_native_backend.scaled_dot_product_attention = _attention64 if in_float64 else ATTENTION


LINEAR, ATTENTION = functional.linear, torch_native_backend.scaled_dot_product_attention


def _linear64(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    wide = None if bias is None else bias.double()
    return LINEAR(x.double(), weight.double(), wide).to(x.dtype)


def _attention64(*args: Any, **kwargs: Any) -> torch.Tensor:
    query, keys, values, *others = args
    return ATTENTION(query.double(), keys.double(), values.double(), *others, **kwargs).to(query.dtype)


def _leave_as_loaded(module: Any, *args: Any, **kwargs: Any) -> None:
    module.use_intel_amx_backend = True


def _let_gpt_oss_compute_in_float32() -> None:
    """SGLang sets bfloat16 for MXFP4, which its kernels need; equal tokens need float32."""
    if find_spec("sglang.srt.arg_groups.model_overrides"):  # 0.5.23 registers each family's in its own module
        import_module("sglang.srt.arg_groups.model_overrides.gpt_oss")
    [stock] = [
        provider
        for provider in overrides._MODEL_OVERRIDE_FNS["GptOssForCausalLM"]
        if provider.__name__ == "_gpt_oss_overrides"
    ]

    def provider(server_args: Any, hf_config: Any) -> dict[str, Any]:
        declared = stock(server_args, hf_config)
        assert declared.pop("dtype") == "bfloat16"
        return declared

    providers = overrides._MODEL_OVERRIDE_FNS["GptOssForCausalLM"]
    providers[providers.index(stock)] = provider
