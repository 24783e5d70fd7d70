"""Which models layered mode refuses at start, and why: SGLang is asked, no family is named here.

SGLang's answers come from its ModelConfig and from the functions that it asks itself when it chooses a
loader, an attention backend or a memory pool. Upstream: srt/configs/model_config.py and hybrid_arch.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class ModelRefusal:
    """A kind of model that layered mode does not serve.

    `models` is what the documents call the kind; `reason` follows the name of a model's architecture in the
    message; `applies` takes an SGLang ModelConfig.
    """

    models: str
    applies: Callable[[Any], bool]
    reason: str
    remedy: str

    def message(self, architecture: str) -> str:
        """What a user sees of a model of this kind, behind its path."""
        return f"{architecture} {self.reason}; {self.remedy}"


def has_quantized_weights(model_config: Any) -> bool:
    """Whether SGLang would load the weights of this model (an SGLang ModelConfig) as quantized ones.

    Its rule looks into config.json (`quantization_config`, `compression_config`), into the files that
    ModelOpt and ModelSlim leave beside it, and at `--quantization`.
    """
    from sglang.srt.utils import has_hf_quant_config

    if model_config.quantization is not None:
        return True
    # SGLang's rule yields no method for a ModelOpt algorithm that it does not know: it loads such weights as
    # plain ones. Asked for the file of a folder, SGLang would go on to the hub with the folder's path.
    folder = Path(model_config.model_path)
    if folder.is_dir():
        return (folder / "hf_quant_config.json").exists()
    return bool(has_hf_quant_config(model_config.model_path))


def has_recurrent_layers(model_config: Any) -> bool:
    """Whether SGLang keeps a state per request and layer for this model (an SGLang ModelConfig)."""
    from sglang.srt.configs.hybrid_arch import mambaish_config

    return mambaish_config(model_config) is not None


def has_sparse_attention(model_config: Any) -> bool:
    """Whether this model (an SGLang ModelConfig) chooses the tokens that a row attends to by an indexer."""
    from sglang.srt.configs.model_config import get_num_indexer_layers, is_deepseek_v4, is_minimax_sparse

    configs = (model_config.hf_config, model_config.hf_text_config)
    return any(
        get_num_indexer_layers(config) or is_deepseek_v4(config) or is_minimax_sparse(config)
        for config in configs
    )


MODEL_REFUSALS = (
    ModelRefusal(
        "models that do not generate text",
        lambda config: not config.is_generation,
        "does not generate text",
        "serve it in chunked mode",
    ),
    ModelRefusal(
        "models that take images or audio",
        lambda config: bool(config.is_multimodal),
        "takes images or audio, which is not tested",
        "serve it in chunked mode",
    ),
    ModelRefusal(
        "quantized weights, wherever the model's folder declares them",
        has_quantized_weights,
        "has quantized weights, which are not tested",
        "serve bf16, fp16 or fp32 weights",
    ),
    ModelRefusal(
        "sparse attention with an indexer (DSA and its kin)",
        has_sparse_attention,
        "has sparse attention with an indexer, which is not tested",
        "serve it in chunked mode",
    ),
    ModelRefusal(
        "recurrent layers (linear attention, state-space layers, short convolutions)",
        has_recurrent_layers,
        "has recurrent layers, whose state has no place for a prompt that stops between two layers",
        "serve it in chunked mode",
    ),
    ModelRefusal(
        "embeddings that read the tokens before (n-gram embedding)",
        lambda config: bool(config.use_ngram_embedding),
        "has n-gram embeddings, whose table of past tokens is not tested beside a prompt in flight",
        "serve it in chunked mode",
    ),
)


def model_refusal(model_config: Any) -> str | None:
    """Why layered mode cannot serve this model (an SGLang ModelConfig), or None."""
    architecture = ", ".join(model_config.hf_config.architectures or ["?"])
    for refusal in MODEL_REFUSALS:
        if refusal.applies(model_config):
            return refusal.message(architecture)
    return None


def attention_refusal(model_config: Any, backends: Iterable[str]) -> str | None:
    """Why these attention backends cannot serve this model (an SGLang ModelConfig), or None."""
    if model_config.has_attention_sinks and "torch_native" in backends:
        return "it has attention sinks, which SGLang's torch_native attention leaves out; use a GPU"
    return None
