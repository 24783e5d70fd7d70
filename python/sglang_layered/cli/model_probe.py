"""What layered prefill would do with a model, read from its configuration; no weight is loaded."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from sglang_layered.cli.doctor import Finding
from sglang_layered.core.policy import TokenTargetPolicy
from sglang_layered.core.view import SchedulerView
from sglang_layered.cpu_kernels import cuda_driver_available

PROMPT_TOKENS = 8192
PARKED_TENSORS = 2  # hidden states and residual


def probe(model_path: str) -> Iterator[Finding]:
    """Layers, groups, experts, parked bytes, attention backend, supported or why not."""
    if not cuda_driver_available():
        os.environ.setdefault("SGLANG_USE_CPU_ENGINE", "1")
    from sglang.srt.configs.model_config import ModelConfig

    from sglang_layered.model_refusals import attention_refusal, model_refusal

    config = ModelConfig(model_path)
    dtype_bytes = config.dtype.itemsize
    yield Finding(
        "model", f"{', '.join(config.hf_config.architectures)}, {config.dtype}".replace("torch.", "")
    )
    yield from _groups(config.num_hidden_layers)
    yield Finding("experts", _experts(config))
    parked = PARKED_TENSORS * config.hidden_size * dtype_bytes
    yield Finding(
        "parked", f"{parked:,} B a prompt token, {parked * PROMPT_TOKENS / 1e6:.0f} MB of {PROMPT_TOKENS}"
    )
    backends, refused = _attention_backends(model_path)
    if refused is not None:
        yield Finding("attention", f"SGLang: {refused}", "a machine with another device")
        return
    yield Finding("attention", " and ".join(dict.fromkeys(backends)))
    reason = model_refusal(config) or attention_refusal(config, backends)
    if reason is None:
        yield Finding("layered mode", "supported")
    else:
        yield Finding("layered mode", f"refused: {reason}", "chunked mode serves what SGLang serves")


def _groups(num_layers: int) -> Iterator[Finding]:
    plan = TokenTargetPolicy().plan(SchedulerView(num_layers, (PROMPT_TOKENS,)))
    sizes = sorted({group.num_layers for group in plan.groups}, reverse=True)
    each = " and ".join(str(size) for size in sizes)
    yield Finding("layers", str(num_layers))
    yield Finding("groups", f"{plan.num_groups} of {each} layers for {PROMPT_TOKENS} prompt tokens")


def _experts(config: Any) -> str:
    """How many, and their bytes where these are known; takes an SGLang ModelConfig."""
    from sglang_layered.models.layer_shapes import read_layer_shapes, served_layer_shapes

    known = read_layer_shapes(config.hf_text_config)
    if not known:
        return "unknown: transformers does not know this model"
    num_sparse = sum(layer.num_experts > 0 for layer in known)
    if not num_sparse:
        return "none: a dense model (docs/models.md says what to expect)"
    sparse = next(layer for layer in known if layer.num_experts)
    counts = f"{sparse.num_experts} in each of {num_sparse} layers, {sparse.num_experts_per_token} a token"
    sizes = [layer.expert_bytes for layer in served_layer_shapes(config) if layer.num_experts]
    if not sizes:
        return (
            f"{counts}: bytes unknown, the weights are quantized and no safetensors file on this machine"
            " says how wide they are"
        )
    return f"{counts}: {sizes[0] / 1e9:.3f} GB a layer, {sum(sizes) / 1e9:.1f} GB in all"


def _attention_backends(model_path: str) -> tuple[tuple[str, ...], str | None]:
    """SGLang's choice on this machine, or why it makes none."""
    from sglang.srt.server_args import ServerArgs

    device = {} if cuda_driver_available() else {"device": "cpu"}
    try:
        return ServerArgs(model_path=model_path, **device).get_attention_backends(), None
    except (AssertionError, ValueError, RuntimeError) as error:
        return (), " ".join(str(error).split())
