"""Models that layered mode refuses: config.json files that SGLang reads, without weights."""

from __future__ import annotations

import importlib
import pkgutil
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from model_folders import LATENT, QWEN3_MOE, RECURRENT, SIZES, model_folder, recurrent
from sglang_layered.models.refused import (
    MODELS,
    SERVED_RECURRENT,
    has_untested_sparse_drafts,
    model_refusal,
    parked_choice_bytes,
    parked_sizes,
    untried_sparse_attention,
)


def refusal_of(folder: Path) -> str | None:
    from sglang.srt.configs.model_config import ModelConfig

    return model_refusal(ModelConfig(str(folder)))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"model_type": "llama", "architectures": ["LlamaForCausalLM"]},
        {"model_type": "gpt_oss", "architectures": ["GptOssForCausalLM"]},
        {"model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"], **LATENT},
        # Granite without a Mamba layer: the family's name says nothing.
        {
            "model_type": "granitemoehybrid",
            "architectures": ["GraniteMoeHybridForCausalLM"],
            "layer_types": ["attention"] * 8,
            "mamba_n_heads": 4,
            "mamba_d_head": 64,
        },
    ],
    ids=lambda fields: fields.get("model_type", "qwen3_moe"),
)
def test_what_layered_mode_serves_is_not_refused(tmp_path: Path, fields: dict[str, Any]) -> None:
    assert refusal_of(model_folder(tmp_path, QWEN3_MOE | fields)) is None


@pytest.mark.parametrize("architecture", sorted(SERVED_RECURRENT & RECURRENT.keys()))
def test_recurrent_layers_that_are_tested_are_served(tmp_path: Path, architecture: str) -> None:
    assert refusal_of(model_folder(tmp_path, recurrent(architecture))) is None


@pytest.mark.parametrize("architecture", [name for name in RECURRENT if name not in SERVED_RECURRENT])
def test_recurrent_layers_are_refused(tmp_path: Path, architecture: str) -> None:
    told = refusal_of(model_folder(tmp_path, recurrent(architecture)))
    assert told is not None
    assert told.startswith(f"{architecture} has recurrent layers")
    assert told.endswith("; serve it in chunked mode")


def test_every_family_with_recurrent_layers_is_tried() -> None:
    """A SGLang configuration with a pool of states that no case above is of: add one there."""
    import sglang.srt.configs as configs
    from sglang.srt.configs.hybrid_arch import JetVLMConfig, Lfm2VlConfig  # read images, refused as such

    stateful = {
        item.model_type
        for module in pkgutil.iter_modules(configs.__path__)
        for item in vars(importlib.import_module(f"{configs.__name__}.{module.name}")).values()
        if isinstance(item, type) and hasattr(item, "mamba2_cache_params")
    }
    with_images = {JetVLMConfig.model_type, Lfm2VlConfig.model_type}
    tried = {model_type for model_type, _ in RECURRENT.values()}
    assert stateful - with_images - UNTRIED - tried == set()


# Text models that only come inside of one with images or audio, and siblings of a family in the table.
UNTRIED = {"inkling_model", "inkling_mm_model", "qwen3_5_text", "nemotron_h_puzzle"}


INDEXER = {
    "model_type": "deepseek_v3",
    "architectures": ["DeepseekV32ForCausalLM"],
    "index_topk": 64,
    "index_n_heads": 4,
    "index_head_dim": 128,
    **LATENT,
}


@pytest.mark.parametrize(
    "fields", [{}, {"index_topk_freq": 4}, {"index_topk_pattern": "FFSSFSSS"}, {"cli_factor": 1}], ids=str
)
def test_an_indexer_is_served_in_every_layer_and_shared(tmp_path: Path, fields: dict[str, Any]) -> None:
    assert refusal_of(model_folder(tmp_path, SIZES | INDEXER | fields)) is None


@pytest.mark.parametrize(("freq", "num_bytes"), [(1, 0), (4, 256)])
def test_a_shared_choice_is_parked_in_4_bytes_a_token(tmp_path: Path, freq: int, num_bytes: int) -> None:
    from sglang.srt.configs.model_config import ModelConfig

    folder = model_folder(tmp_path, SIZES | INDEXER | {"index_topk_freq": freq})
    assert parked_choice_bytes(ModelConfig(str(folder))) == num_bytes
    assert parked_choice_bytes(ModelConfig(str(model_folder(tmp_path / "plain", QWEN3_MOE)))) == 0


@pytest.mark.parametrize(
    ("architecture", "num_sizes"), [("KimiK3ForConditionalGeneration", 4), ("KimiLinearForCausalLM", 2)]
)
def test_blocks_of_layers_before_are_parked(tmp_path: Path, architecture: str, num_sizes: int) -> None:
    """8 layers in blocks of 3, beside the sum in the open one."""
    from sglang.srt.configs.model_config import ModelConfig

    assert parked_sizes(ModelConfig(str(model_folder(tmp_path, recurrent(architecture))))) == num_sizes


def test_choices_that_no_stage_hands_on_are_refused(tmp_path: Path) -> None:
    told = refusal_of(model_folder(tmp_path, SIZES | INDEXER | {"cli_factor": 2}))
    assert "has layers that attend to the tokens that a layer before chose, by cli_factor" in str(told)


def test_other_indexers_are_refused(tmp_path: Path) -> None:
    """SGLang's own way for other families to say that they have one."""
    told = refusal_of(model_folder(tmp_path, QWEN3_MOE | {"num_indexer_layers": 8}))
    assert "has an indexer of a kind that nobody has cut" in str(told)


@pytest.mark.parametrize(
    ("kernels", "backend", "is_refused"),
    [
        (("flashmla_sparse", "fa3"), "dsa", False),
        (("flashmla_sparse", "fa3"), "nsa", False),
        (("flashmla_sparse", "fa3"), "triton", True),
        (("trtllm", "trtllm"), "dsa", True),
        (("flashmla_kv", "flashmla_kv"), "dsa", True),
    ],
)
def test_an_indexer_is_served_on_the_kernels_that_tokens_were_compared_on(
    tmp_path: Path, kernels: tuple[str, str], backend: str, is_refused: bool
) -> None:
    from sglang.srt.configs.model_config import ModelConfig

    model_config = ModelConfig(str(model_folder(tmp_path, SIZES | INDEXER)))
    args = SimpleNamespace(
        get_attention_backends=lambda: (backend, backend),
        dsa_prefill_backend=kernels[0],
        dsa_decode_backend=kernels[1],
    )
    assert (untried_sparse_attention(model_config, args) is not None) is is_refused


@pytest.mark.parametrize(
    ("algorithm", "draft", "is_refused"),
    [
        ("EAGLE", None, False),
        ("EAGLE", "the model", False),
        ("EAGLE", "another", True),
        ("EAGLE3", "another", True),
        ("STANDALONE", "another", True),
        ("NGRAM", None, True),  # SGLang would verify its trees as chains
    ],
)
def test_behind_an_indexer_drafts_of_the_models_own_layer_are_served(
    tmp_path: Path, algorithm: str, draft: str | None, is_refused: bool
) -> None:
    from sglang.srt.configs.model_config import ModelConfig

    args = SimpleNamespace(
        model_path="the model", speculative_algorithm=algorithm, speculative_draft_model_path=draft
    )
    model_config = ModelConfig(str(model_folder(tmp_path / "sparse", SIZES | INDEXER)))
    assert has_untested_sparse_drafts(model_config, args) is is_refused
    plain = ModelConfig(str(model_folder(tmp_path / "plain", QWEN3_MOE)))
    assert not has_untested_sparse_drafts(plain, args)


@pytest.mark.parametrize("ratio", [None, 2.0])
def test_ngram_embeddings_are_refused(tmp_path: Path, ratio: float | None) -> None:
    fields = {"model_type": "longcat_flash", "architectures": ["LongcatFlashForCausalLM"], **LATENT}
    ngram = (
        {} if ratio is None else {"ngram_vocab_size_ratio": ratio, "emb_neighbor_num": 3, "emb_split_num": 2}
    )
    told = refusal_of(model_folder(tmp_path, SIZES | fields | ngram))
    assert told is None if ratio is None else "LongcatFlashForCausalLM has n-gram embeddings" in str(told)


def test_models_without_text_are_refused(tmp_path: Path) -> None:
    bert = SIZES | {"model_type": "bert", "architectures": ["BertModel"]}
    assert "BertModel does not generate text" in str(refusal_of(model_folder(tmp_path, bert)))


def test_models_with_images_serve_text(tmp_path: Path) -> None:
    fields = {"model_type": "qwen2_vl", "architectures": ["Qwen2VLForConditionalGeneration"]}
    assert refusal_of(model_folder(tmp_path, SIZES | fields)) is None


@pytest.mark.parametrize("kind", MODELS)
def test_every_refusal_of_models_has_a_reason_and_a_remedy(kind: str) -> None:
    _, says = MODELS[kind]
    assert re.fullmatch(r"\S.*; \S.*", says)
