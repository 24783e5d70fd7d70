"""Which models layered mode does not serve: one table, a row a kind, with the reason and the remedy.

SGLang is asked what a model has, by its ModelConfig and by the functions that it asks itself when it chooses
an attention backend or a memory pool. Families are named where each has to be tried by itself.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from sglang_layered.models.quantization import REFUSED

# Of the models with a state per request and layer those whose tokens the tests compare (docs/models.md).
SERVED_RECURRENT = frozenset({"Qwen3NextForCausalLM", "Qwen3_5MoeForConditionalGeneration"})


def has_recurrent_layers(model_config: Any) -> bool:
    """Whether SGLang keeps a state per request and layer for this model (an SGLang ModelConfig)."""
    from sglang.srt.configs.hybrid_arch import mambaish_config

    return mambaish_config(model_config) is not None


def has_untested_states(model_config: Any) -> bool:
    """Whether nobody has compared the tokens of this model (an SGLang ModelConfig) with recurrent layers."""
    architectures = set(model_config.hf_config.architectures or ["?"])
    return has_recurrent_layers(model_config) and not architectures <= SERVED_RECURRENT


def has_sparse_attention(model_config: Any) -> bool:
    """Whether this model (an SGLang ModelConfig) chooses the tokens that a row attends to by an indexer."""
    from sglang.srt.configs.model_config import get_num_indexer_layers, is_deepseek_v4, is_minimax_sparse

    configs = (model_config.hf_config, model_config.hf_text_config)
    return any(
        get_num_indexer_layers(config) or is_deepseek_v4(config) or is_minimax_sparse(config)
        for config in configs
    )


MODELS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "models that do not generate text": (
        lambda model: not model.is_generation,
        "does not generate text; serve it in chunked mode",
    ),
    **REFUSED,
    "sparse attention with an indexer (DSA and its kin)": (
        has_sparse_attention,
        "has sparse attention with an indexer, which is not tested; serve it in chunked mode",
    ),
    "recurrent layers (linear attention, state-space layers, short convolutions) of other families": (
        has_untested_states,
        "has recurrent layers, whose states are not tested beside a cohort in this family; serve it in"
        " chunked mode",
    ),
    "embeddings that read the tokens before (n-gram embedding)": (
        lambda model: bool(model.use_ngram_embedding),
        "has n-gram embeddings, whose table of past tokens is not tested beside a prompt in flight; serve it"
        " in chunked mode",
    ),
}
"""Kinds of models that layered mode does not serve: the question to a ModelConfig, the reason, the remedy."""


def model_refusal(model_config: Any, backends: Iterable[str] = ()) -> str | None:
    """Why layered mode cannot serve an SGLang ModelConfig with these attention backends, or None."""
    for applies, says in MODELS.values():
        if applies(model_config):
            return f"{', '.join(model_config.hf_config.architectures or ['?'])} {says}"
    if model_config.has_attention_sinks and "torch_native" in backends:
        return "it has attention sinks, which SGLang's torch_native attention leaves out; use a GPU"
    return None
