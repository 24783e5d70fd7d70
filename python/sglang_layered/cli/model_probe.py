"""What layered prefill would do with a model, read from its configuration; no weight is loaded."""

from __future__ import annotations

import os
from collections.abc import Iterator

from sglang_layered.cli.doctor import Finding
from sglang_layered.core.layer_shape import LayerShape
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

    from sglang_layered.models.layer_shapes import read_layer_shapes
    from sglang_layered.refusals import attention_refusal, model_refusal

    config = ModelConfig(model_path)
    dtype_bytes = config.dtype.itemsize
    layers = read_layer_shapes(config.hf_text_config, dtype_bytes)
    yield Finding(
        "model", f"{', '.join(config.hf_config.architectures)}, {config.dtype}".replace("torch.", "")
    )
    yield from _sizes(config.num_hidden_layers, layers)
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


def _sizes(num_layers: int, layers: tuple[LayerShape, ...]) -> Iterator[Finding]:
    plan = TokenTargetPolicy().plan(SchedulerView(num_layers, (PROMPT_TOKENS,)))
    sizes = sorted({group.num_layers for group in plan.groups}, reverse=True)
    each = " and ".join(str(size) for size in sizes)
    yield Finding("layers", str(num_layers))
    yield Finding("groups", f"{plan.num_groups} of {each} layers for {PROMPT_TOKENS} prompt tokens")
    if not layers:
        yield Finding("experts", "unknown: transformers does not know this model")
        return
    sparse = [layer for layer in layers if layer.num_experts]
    if not sparse:
        yield Finding("experts", "none: a dense model (docs/models.md says what to expect)")
        return
    layer = sparse[0]
    total = sum(item.expert_bytes for item in sparse)
    yield Finding(
        "experts",
        f"{layer.num_experts} in each of {len(sparse)} layers, {layer.num_experts_per_token} a token:"
        f" {layer.expert_bytes / 1e9:.3f} GB a layer, {total / 1e9:.1f} GB in all",
    )


def _attention_backends(model_path: str) -> tuple[tuple[str, ...], str | None]:
    """SGLang's choice on this machine, or why it makes none."""
    from sglang.srt.server_args import ServerArgs

    device = {} if cuda_driver_available() else {"device": "cpu"}
    try:
        return ServerArgs(model_path=model_path, **device).get_attention_backends(), None
    except (AssertionError, ValueError, RuntimeError) as error:
        return (), " ".join(str(error).split())
