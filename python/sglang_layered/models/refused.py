"""Which models layered mode does not serve: one table, a row a kind, with the reason and the remedy.

SGLang is asked what a model has, by its ModelConfig and by the functions that it asks itself when it chooses
an attention backend or a memory pool. Families are named where each has to be tried by itself.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from sglang_layered.models.quantization import REFUSED

# Where test/cuda_emulation compares tokens of sparse attention: Hopper's defaults; "nsa" is an old name.
SPARSE_BACKENDS = frozenset({"dsa", "nsa"})
SPARSE_KERNELS = ("flashmla_sparse", "fa3")  # for prompts, for decode rows
# Of the models with a state per request and layer those whose tokens the tests compare (docs/models.md).
SERVED_RECURRENT = frozenset(
    {
        "KimiK3ForConditionalGeneration",
        "KimiLinearForCausalLM",
        "Lfm2ForCausalLM",
        "Lfm2MoeForCausalLM",
        "NemotronHForCausalLM",
        "Qwen3NextForCausalLM",
        "Qwen3_5MoeForConditionalGeneration",
    }
)

# Of those the ones whose drafts are verified beside a cohort in tests (test/models/test_speculative.py), and
# by which algorithms; and the models whose drafts are told of images there.
DRAFTED_RECURRENT = frozenset(
    {"NemotronHForCausalLM", "Qwen3NextForCausalLM", "Qwen3_5MoeForConditionalGeneration"}
)
DRAFTS_OF_RECURRENT = ("NGRAM", "EAGLE")
DRAFTED_IMAGES = frozenset({"Qwen3_5MoeForConditionalGeneration"})

HIDDEN_AND_RESIDUAL = 2


def has_recurrent_layers(model_config: Any) -> bool:
    """Whether SGLang keeps a state per request and layer for this model (an SGLang ModelConfig)."""
    from sglang.srt.configs.hybrid_arch import mambaish_config

    return mambaish_config(model_config) is not None


def has_mamba2_layers(model_config: Any) -> bool:
    """Whether SGLang serves this model (an SGLang ModelConfig) by its Mamba2 or short-convolution backend."""
    from sglang.srt.configs.hybrid_arch import mamba2_config

    return mamba2_config(model_config) is not None


def has_untested_states(model_config: Any) -> bool:
    """Whether nobody has compared the tokens of this model (an SGLang ModelConfig) with recurrent layers."""
    return has_recurrent_layers(model_config) and not _is_of(SERVED_RECURRENT, model_config)


def has_untested_drafts(model_config: Any, algorithm: str) -> bool:
    """Whether nobody has compared drafts of this kind for this model (an SGLang ModelConfig) with states."""
    is_tested = _is_of(DRAFTED_RECURRENT, model_config) and algorithm in DRAFTS_OF_RECURRENT
    return has_recurrent_layers(model_config) and not is_tested


def has_untold_images(model_config: Any, algorithm: str) -> bool:
    """Whether a draft model of this kind may read what nobody has handed to it of images, in tests."""
    is_told = _is_of(DRAFTED_IMAGES, model_config) and algorithm == "EAGLE"
    return bool(model_config.is_multimodal) and algorithm != "NGRAM" and not is_told


def shares_by_factor(model_config: Any) -> bool:
    """Whether layers take over chosen tokens by `cli_factor`, which SGLang's stages do not look at."""
    return has_indexer(model_config) and any(
        getattr(config, "cli_factor", 1) > 1 for config in _configs(model_config)
    )


def compresses_keys(model_config: Any) -> bool:
    """Whether this model has DeepSeek-V4's attention."""
    from sglang.srt.configs.model_config import is_deepseek_v4

    return any(is_deepseek_v4(config) for config in _configs(model_config))


def has_unknown_indexer(model_config: Any) -> bool:
    """Whether this model says that it has an indexer, of no kind that layered mode knows."""
    return any(getattr(config, "num_indexer_layers", 0) for config in _configs(model_config))


def _is_of(families: frozenset[str], model_config: Any) -> bool:
    return families.issuperset(model_config.hf_config.architectures or ["?"])


def _configs(model_config: Any) -> tuple[Any, Any]:
    return model_config.hf_config, model_config.hf_text_config


MODELS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "models that do not generate text": (
        lambda model: not model.is_generation,
        "does not generate text; serve it in chunked mode",
    ),
    **REFUSED,
    "sparse attention whose layers share an indexer's choice by `cli_factor` (LongCat-Flash)": (
        shares_by_factor,
        "has layers that attend to the tokens that a layer before chose, by cli_factor, and SGLang lets a"
        " choice travel from stage to stage by index_topk_freq and index_topk_pattern only; serve it in"
        " chunked mode",
    ),
    "sparse attention over compressed keys (DeepSeek-V4)": (
        compresses_keys,
        "compresses its keys by states beside the KV cache, which nobody has read for prompt and decode rows"
        " in one layer; serve it in chunked mode",
    ),
    "sparse attention of other kinds (`num_indexer_layers`)": (
        has_unknown_indexer,
        "has an indexer of a kind that nobody has cut into prompt and decode rows; serve it in chunked mode",
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
    left_out = _left_out_by_torch(model_config) if "torch_native" in backends else None
    if left_out is not None:
        return (
            f"it has {left_out}, which SGLang's torch_native attention leaves out; use --attention-backend"
            " cpu_paged on a CPU, another backend on a GPU"
        )
    return None


def _left_out_by_torch(model_config: Any) -> str | None:
    """What SGLang's attention in torch computes wrong, silently or by an error at the first prompt."""
    from sglang.srt.configs.model_config import AttentionArch

    if model_config.has_attention_sinks:
        return "attention sinks"
    if getattr(model_config.hf_text_config, "attn_logit_softcapping", None):
        return "soft caps of its scores"
    return "latent attention" if model_config.attention_arch == AttentionArch.MLA else None


def chooses_blocks(model_config: Any) -> bool:
    """True for MiniMax-M3: sparse attention to blocks of tokens that an indexer chooses."""
    from sglang.srt.configs.model_config import is_minimax_sparse

    return any(is_minimax_sparse(config) for config in _configs(model_config))


def has_indexer(model_config: Any) -> bool:
    """True for DSA: sparse attention over latent keys that an indexer chooses."""
    from sglang.srt.configs.model_config import is_deepseek_dsa

    return any(is_deepseek_dsa(config) for config in _configs(model_config))


def parked_choice_bytes(model_config: Any) -> int:
    """Bytes a prompt token parks of an indexer's choice where a layer group begins with taking it over."""
    from sglang.srt.configs.model_config import dsa_layer_skips_topk, is_deepseek_dsa

    config = model_config.hf_text_config
    layers = range(model_config.num_hidden_layers) if is_deepseek_dsa(config) else ()
    return 4 * config.index_topk if any(dsa_layer_skips_topk(config, layer) for layer in layers) else 0


def parked_sizes(model_config: Any) -> int:
    """How many hidden sizes a prompt token parks between two layer groups, at most."""
    from sglang.srt.configs.model_config import is_kimi_k3

    block = getattr(model_config.hf_text_config, "attn_res_block_size", None)
    if block is None or not is_kimi_k3(model_config.hf_config):
        return HIDDEN_AND_RESIDUAL
    return 1 - (-model_config.num_hidden_layers // block)  # and each block of layers before


def untried_sparse_attention(model_config: Any, server_args: Any) -> str | None:
    """The flags that take an indexer's attention where no tokens were compared, or None."""
    if not has_indexer(model_config):
        return None
    from sglang_layered.upstream.releases import arguments

    backends = set(arguments.attention_backends_of(server_args))
    if not backends <= SPARSE_BACKENDS:
        return f"--attention-backend {' or '.join(sorted(backends))}"
    kernels = (server_args.dsa_prefill_backend, server_args.dsa_decode_backend)
    if kernels == SPARSE_KERNELS:
        return None
    return "--dsa-prefill-backend {} and --dsa-decode-backend {}".format(*kernels)


def has_untested_sparse_drafts(model_config: Any, server_args: Any) -> bool:
    """Whether a model with an indexer is drafted for by anything but its own MTP layer.

    SGLang names the model itself as the draft's path where none is given.
    """
    is_own = server_args.speculative_draft_model_path in (None, server_args.model_path)
    is_mtp = server_args.speculative_algorithm == "EAGLE" and is_own
    return has_indexer(model_config) and not is_mtp
