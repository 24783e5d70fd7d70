"""Every way to quantize weights that SGLang 0.5.17 has, and whether layered mode serves it.

Layered mode gives the tokens of SGLang's own scheduling where a row's numbers do not depend on the rows
beside it. Weights alone never make them depend; activations that share one scale do. `scripts/refusals-list`
writes METHODS into docs/models.md.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from sglang_layered.models.checkpoint_bytes import declared_quantization, has_quantized_weights

DEPENDS = (
    "Answers of this model depend on the requests beside them, in SGLang's own scheduling as in layered mode:"
    " %s. The two are not promised to give the same tokens (docs/models.md, quantized weights)"
)


@dataclass(frozen=True, slots=True)
class Sharing:
    """When the rows of a step share something that changes their numbers.

    `text` says what, after "where" in the document; `applies` is asked with an SGLang ModelConfig.
    """

    where: str
    text: str
    applies: Callable[[Any], bool]


@dataclass(frozen=True, slots=True)
class Method:
    """How layered mode treats a method.

    `evidence` says how it is known that rows do not depend on each other. `refusal` is a reason, and after a
    semicolon the remedy; None where the method is served.
    """

    evidence: str = ""
    sharing: Sharing | None = None
    refusal: str | None = None


def has_experts(model_config: Any) -> bool:
    """Whether the model has routed experts; True where nobody knows its layers."""
    from sglang_layered.models.layer_shapes import read_layer_shapes

    layers = read_layer_shapes(model_config.hf_text_config)
    return not layers or any(layer.num_experts for layer in layers)


def sharing_of(model_config: Any) -> Sharing | None:
    """What the rows of a step share in this model (an SGLang ModelConfig), or None: each is by itself."""
    method = METHODS.get(model_config.quantization or "")
    sharing = None if method is None else method.sharing
    return sharing if sharing is not None and sharing.applies(model_config) else None


def _is_of(method: str, model_config: Any) -> bool:
    return bool(model_config.quantization == method)


def _fp8_by_tensor(model_config: Any) -> bool:
    fields = declared_quantization(model_config)
    is_fixed = fields.get("activation_scheme") == "static" or fields.get("weight_block_size")
    return not is_fixed and has_experts(model_config)


def _dicts(node: Any) -> Iterator[Mapping[str, Any]]:
    """Every mapping in a tree of them."""
    if isinstance(node, Mapping):
        yield node
        for child in node.values():
            yield from _dicts(child)
    elif isinstance(node, list | tuple):
        for child in node:
            yield from _dicts(child)


def _one_scale_inputs(inputs: str, kind: str, is_dynamic: str, by_tensor: str) -> Callable[[Any], bool]:
    """Whether a layer's activations are declared to get one scale, found anew in each step."""

    def applies(model_config: Any) -> bool:
        found = (fields.get(inputs) for fields in _dicts(declared_quantization(model_config)))
        shared = (
            one
            for group in found
            for one in _dicts(group)
            if one.get(is_dynamic) and one.get(kind) == by_tensor
        )
        return any(shared) and has_experts(model_config)

    return applies


ONE_SCALE = "experts take one activation scale for all rows of a step"
RAN = (
    "tokens equal SGLang's, four ways, with chunks, prefix hits and a drop (`test/models/test_quantized.py`)"
)
EMULATED = (
    "tokens equal SGLang's on an emulated GPU, four ways, with chunks, prefix hits and a drop"
    " (`test/cuda_emulation/test_quantized.py`)"
)
PER_ROW = "read: activations have a scale for each row or for a part of it"
WEIGHTS_ONLY = "read: activations are not quantized"
ELSEWHERE = "runs on {} only, where layered mode was never run; serve it in chunked mode"

FP8_BY_TENSOR = Sharing(
    "a Mixture-of-Experts model has no blocks and no fixed activation scales (so with `--quantization fp8` on"
    " plain weights)",
    ONE_SCALE,
    _fp8_by_tensor,
)
METHODS: Mapping[str, Method] = {
    "fp8": Method(f"blocks: {RAN}; fixed scales: {EMULATED}", FP8_BY_TENSOR),
    "mxfp8": Method(PER_ROW),
    "blockwise_int8": Method(PER_ROW),
    "w8a8_int8": Method(RAN),
    "w8a8_fp8": Method(PER_ROW),
    "compressed-tensors": Method(
        f"FP8 with a scale a row, and 4-bit weights on 16-bit activations: {EMULATED}; others: {PER_ROW},"
        " or are fixed, or not quantized",
        Sharing(
            "experts declare dynamic activations by tensor",
            ONE_SCALE,
            _one_scale_inputs("input_activations", "strategy", "dynamic", "tensor"),
        ),
    ),
    "modelopt": Method("read: the checkpoint is one of the next two"),
    "modelopt_fp8": Method(EMULATED),
    "modelopt_fp4": Method(
        f"on Hopper, where Marlin's kernels leave activations in 16 bits, and on Blackwell, where they have a"
        f" fixed scale and each row has its own for 16 inputs: {EMULATED}"
    ),
    "modelopt_mixed": Method(
        "read: each layer is like one of the two above, or MXFP8 with a scale for 32 inputs of a row"
    ),
    "nvfp4_online": Method(PER_ROW),
    "w4afp8": Method(EMULATED),
    "mxfp4": Method(RAN),
    "awq": Method(RAN),
    "awq_marlin": Method(WEIGHTS_ONLY),
    "gptq": Method(RAN),
    "gptq_marlin": Method(WEIGHTS_ONLY),
    "moe_wna16": Method(WEIGHTS_ONLY),
    "auto-round": Method(WEIGHTS_ONLY),
    "auto-round-int8": Method(PER_ROW),
    "bitsandbytes": Method(
        WEIGHTS_ONLY,
        Sharing(
            "weights have 8 bits (`load_in_8bit`)",
            "columns that any row of a step makes large are kept in 16 bits for all of them",
            lambda model_config: bool(declared_quantization(model_config).get("load_in_8bit")),
        ),
    ),
    "gguf": Method(
        "",
        Sharing(
            "always",
            "a step of few rows runs kernels that round activations, a step of many others",
            lambda model_config: True,
        ),
    ),
    "quark": Method(
        PER_ROW + ", or are fixed",
        Sharing(
            "experts declare dynamic activations by tensor",
            ONE_SCALE,
            _one_scale_inputs("input_tensors", "qscheme", "is_dynamic", "per_tensor"),
        ),
    ),
    "quark_mxfp4": Method(refusal=ELSEWHERE.format("AMD GPUs")),
    "quark_int4fp8_moe": Method(refusal=ELSEWHERE.format("AMD GPUs")),
    "petit_nvfp4": Method(refusal=ELSEWHERE.format("AMD GPUs")),
    "modelslim": Method(refusal=ELSEWHERE.format("Ascend NPUs")),
    "mxfp_w4a8": Method(refusal=ELSEWHERE.format("Ascend NPUs")),
    "humming": Method(
        refusal="quantizes activations as a library of its own decides, which nobody has read for layered"
        " mode; leave --quantization humming out"
    ),
}
"""By the name that SGLang's registry has."""

REFUSED: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    **{
        f"quantized weights of the method `{name}`": (
            partial(_is_of, name),
            f"has weights of the method {name}, which {method.refusal}",
        )
        for name, method in METHODS.items()
        if method.refusal is not None
    },
    # SGLang's rule yields no method for a ModelOpt algorithm that it does not know.
    "quantized weights of a method that SGLang does not know": (
        lambda model: model.quantization is None and has_quantized_weights(model),
        "has quantized weights of a method that SGLang does not know and would take for plain ones; name the"
        " method with --quantization, or serve other weights",
    ),
}
"""Quantized models that are not served: the question to a ModelConfig, the reason, the remedy."""
