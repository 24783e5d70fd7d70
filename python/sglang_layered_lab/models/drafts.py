"""Drafts of speculative decoding for models that `draftable` made: built of the target's own weights.

Each guesses the next row: the embedding of the token that it is told, and the average of the context, partly
from the hidden state that it is handed and partly by its own attention, which reads hidden states of all rows
before. So its guesses change where one of them is wrong: a hidden state of another row, a slot not filled.
"""

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from sglang_layered.errors import ModelRecipeError
from sglang_layered_lab.models.checkpoint import random_tensor, write_file, write_json
from sglang_layered_lab.models.draft_target import FINAL_RMS, Target, Weights
from sglang_layered_lab.models.draftable import LAYER_GAIN, rms
from sglang_layered_lab.models.make import MARKER, partial_folder, put_in_place, record_of_ours
from sglang_layered_lab.models.tensors import MATRIX_GAIN, TensorSpec

DRAFT_MARKER, MADE_BY, FORMAT = "draft.json", "sglang-layered make-draft", 1
LEAK = 0.1  # of the average that a layer's own attention averages once more: guesses become a little worse
AVERAGED = 0.8  # of the average that EAGLE3's layer makes anew, out of all hidden states
SHARPNESS = 1.4  # of heads that attend to their own row
AUXILIARY_STATES = 3
NUM_MTP_LAYERS, WINDOW = 3, 64  # of MiMo-V2's kind, and how many tokens they attend to


def make_draft(kind: str, target: Path, out: Path, *, force: bool = False) -> bool:
    """Write a draft for the model folder `target`; return False when the same is complete there.

    `kind` is one of DRAFTS. That of `mtp` is the target with one layer more, and serves as both.

    Raises:
        ModelRecipeError: the target is not draftable or lacks what this draft is made of, or `out` is taken.
    """
    recipe = json.loads((target / MARKER).read_text(encoding="utf-8"))["recipe"]
    if not recipe.get("draftable"):
        raise ModelRecipeError(f"--target {target} is not draftable; make it by make-model --draftable")
    identity = {"made_by": MADE_BY, "format": FORMAT, "kind": kind, "target": recipe}
    found = record_of_ours(out, DRAFT_MARKER, MADE_BY)
    if found is not None and not force:
        if found != identity:
            raise ModelRecipeError(f"--out {out} holds another draft; choose another --out, or --force")
        return False
    config = json.loads((target / "config.json").read_text(encoding="utf-8"))
    config, weights = DRAFTS[kind](Target(config, load_file(target / "model.safetensors")))
    with partial_folder(out.resolve(), sum(weight.nbytes for weight in weights.values())) as partial:
        for path in target.iterdir():
            if path.suffix != ".safetensors" and path.name != MARKER:
                shutil.copyfile(path, partial / path.name)
        write_json(partial / "config.json", config)
        whole = {name: weight.contiguous() for name, weight in weights.items()}
        write_file(whole, partial / "model.safetensors", like=partial / "config.json")
        write_json(partial / DRAFT_MARKER, identity)
        put_in_place(partial, out.resolve())
    return True


def _standalone(target: Target) -> tuple[dict[str, Any], Weights]:
    """A Llama of one layer. SGLang takes a draft of the target's own family for an MTP layer in some."""
    values, output = target.averaging_heads()
    weights = _llama_layer("model.layers.0.", values, output)
    weights["model.layers.0.self_attn.q_proj.weight"].zero_()
    weights["model.embed_tokens.weight"] = target.embedding
    weights["lm_head.weight"] = target.weights["lm_head.weight"]
    weights["model.norm.weight"] = torch.ones(target.hidden_size)
    return _llama_config(target, "LlamaForCausalLM"), weights


def _eagle(target: Target) -> tuple[dict[str, Any], Weights]:
    """EAGLE: one layer of Llama behind `fc` [hidden, 2 * hidden] of an embedding and a hidden state, normed.

    Its own output is the next step's hidden state, so it is as large as a normed row.
    """
    embedding, average = target.columns()
    told = rms(target.embedding)
    values, output = target.averaging_heads()
    values = values @ (embedding + LEAK * average) * (FINAL_RMS / told)
    weights = _llama_layer("layers.0.", values, output / FINAL_RMS / 2)
    weights["layers.0.self_attn.q_proj.weight"].zero_()
    weights["fc.weight"] = torch.cat([embedding / FINAL_RMS, average / 2], dim=1)
    weights["fc.bias"] = torch.zeros(target.hidden_size)
    del weights["layers.0.input_layernorm.weight"]
    return _llama_config(target, "LlamaForCausalLMEagle"), weights


def _eagle3(target: Target) -> tuple[dict[str, Any], Weights]:
    """EAGLE3: a layer of Llama on a hidden state, whose attention has the embedding beside it, both normed.

    Four heads attend to their own row: they bring the embedding in and take the last one out, and most of the
    average. The others average the embeddings of the hidden states.
    """
    embedding, average = target.columns()
    hidden, told = target.hidden_size, rms(target.embedding)
    own_values = torch.cat([embedding * told, (-embedding - average * AVERAGED) * FINAL_RMS], dim=1)
    values, output = target.averaging_heads()
    values = torch.cat([torch.zeros_like(values), values @ embedding], dim=1)
    weights = _llama_layer(
        "midlayer.",
        torch.cat([own_values, values]),
        torch.cat([torch.eye(hidden), output * AVERAGED], dim=1),
    )
    sharp = torch.cat([torch.eye(hidden), torch.zeros(hidden, hidden)], dim=1) * SHARPNESS
    size = target.head_size  # embeddings are zero in the columns of the average
    sharp[-size:] = sharp[:size]
    for part in "qk":
        weights[f"midlayer.self_attn.{part}_proj.weight"] = torch.cat([sharp, torch.zeros_like(sharp)])
    weights["midlayer.hidden_norm.weight"] = torch.ones(hidden)
    weights["norm.weight"] = torch.ones(hidden)
    weights["fc.weight"] = torch.eye(hidden).repeat(1, AUXILIARY_STATES) / AUXILIARY_STATES
    weights["lm_head.weight"] = target.weights["lm_head.weight"]
    config = _llama_config(target, "LlamaForCausalLMEagle3", num_halves=2)
    return config | {"draft_vocab_size": config["vocab_size"]}, weights


def _mtp_layers(target: Target) -> tuple[dict[str, Any], Weights]:
    """MiMo-V2's: a layer for each of the next tokens, on a target's row and the token before its own one.

    They attend to a window. What they have of embeddings and head SGLang takes from the target.
    """
    embedding, average = target.columns()
    values, output = target.averaging_heads()
    weights: Weights = {}
    for number in range(NUM_MTP_LAYERS):
        layer = f"model.mtp.layers.{number}."
        weights |= _llama_layer(layer, values @ (embedding + LEAK * average), output / 2)
        weights[f"{layer}self_attn.q_proj.weight"].zero_()
        weights[f"{layer}pre_mlp_layernorm.weight"] = weights.pop(f"{layer}post_attention_layernorm.weight")
        weights[f"{layer}eh_proj.weight"] = target.next_row()
        for name in ("enorm", "hnorm", "final_layernorm"):
            weights[f"{layer}{name}.weight"] = torch.ones(target.hidden_size)
    config = _llama_config(target, "MiMoV2FlashForCausalLM")
    return config | {
        "num_nextn_predict_layers": NUM_MTP_LAYERS,
        "swa_num_attention_heads": target.num_heads,
        "swa_num_key_value_heads": target.num_heads,
        "swa_head_dim": target.head_size,
        "swa_rope_theta": 10000.0,
        "sliding_window_size": WINDOW,
        "attention_bias": False,
        "layernorm_epsilon": config["rms_norm_eps"],
        "hybrid_layer_pattern": [1],
    }, weights


def _mtp(target: Target) -> tuple[dict[str, Any], Weights]:
    """A layer for the token after the next, of the target's family and in the target's folder."""
    layer = MTP.get(str(target.whole_config["model_type"]))
    if layer is None:
        raise ModelRecipeError(f"a draft of kind mtp is for models of the families {', '.join(MTP)}")
    fields, weights = layer(target)
    return dict(target.whole_config) | fields, target.weights | weights


def _mtp_of_deepseek(target: Target) -> tuple[dict[str, Any], Weights]:
    """DeepSeek's: with latent attention, which averages as the target's does, of embeddings mostly."""
    embedding, average = target.columns()
    fields, layer, weights = _mtp_behind(target)
    weights |= target.below(target.averaging, f"{layer}self_attn.")
    down = f"{layer}self_attn.kv_a_proj_with_mqa.weight"
    weights[down] = weights[down] @ (embedding + LEAK * average)
    weights[f"{layer}self_attn.o_proj.weight"] /= 2
    return fields, weights


def _mtp_of_glm(target: Target) -> tuple[dict[str, Any], Weights]:
    """GLM-4.x-MoE's."""
    fields, layer, weights = _mtp_behind(target)
    return fields, weights | _averaging_again(target, f"{layer}self_attn.")


def _mtp_of_mimo(target: Target) -> tuple[dict[str, Any], Weights]:
    """MiMo's: a layer of Qwen2 on a row and an embedding, in this order."""
    layer = "model.mtp_layers.0."
    weights = target.below(target.averaging.removesuffix("self_attn."), layer)
    weights |= _averaging_again(target, f"{layer}self_attn.")
    embedding, row = target.next_row().chunk(2, dim=1)
    weights[f"{layer}input_proj.weight"] = torch.cat([row, embedding], dim=1)
    for name in ("token_layernorm", "hidden_layernorm", "final_layernorm"):
        weights[f"{layer}{name}.weight"] = torch.ones(target.hidden_size)
    return {"num_nextn_predict_layers": 1}, weights


def _mtp_behind(target: Target) -> tuple[dict[str, Any], str, Weights]:
    """A layer behind the target's last one and as it, with embeddings and head of its own; and its name."""
    ones, num_layers = torch.ones(target.hidden_size), int(target.config["num_hidden_layers"])
    layer = f"model.layers.{num_layers}."
    weights = target.below(f"model.layers.{num_layers - 1}.", layer)
    weights[f"{layer}eh_proj.weight"] = target.next_row()
    for name in ("enorm", "hnorm", "shared_head.norm"):
        weights[f"{layer}{name}.weight"] = ones.clone()
    weights[f"{layer}embed_tokens.weight"] = target.embedding.clone()
    weights[f"{layer}shared_head.head.weight"] = target.weights["lm_head.weight"].clone()
    return {"num_nextn_predict_layers": 1}, layer, weights


def _mtp_of_qwen(target: Target) -> tuple[dict[str, Any], Weights]:
    """Qwen3-Next's and Qwen3.5's: with full attention, as the layer that averages, and norms around 0."""
    weights = target.below(target.averaging.removesuffix("self_attn."), "mtp.layers.0.")
    weights |= _averaging_again(target, "mtp.layers.0.self_attn.")
    weights["mtp.fc.weight"] = target.next_row()
    for name in ("pre_fc_norm_embedding", "pre_fc_norm_hidden", "norm"):
        weights[f"mtp.{name}.weight"] = torch.zeros(target.hidden_size)
    return {}, weights


def _mtp_of_nemotron(target: Target) -> tuple[dict[str, Any], Weights]:
    """Nemotron-H's: two blocks, the attention that averages and the first experts."""
    experts = list(target.config["layers_block_type"]).index("moe")
    weights = target.below(target.averaging.removesuffix("mixer."), "mtp.layers.0.")
    weights |= _averaging_again(target, "mtp.layers.0.mixer.")
    weights |= target.below(f"backbone.layers.{experts}.", "mtp.layers.1.")
    weights["mtp.layers.0.eh_proj.weight"] = target.next_row()
    for name in ("0.enorm", "0.hnorm", "1.final_layernorm"):
        weights[f"mtp.layers.{name}.weight"] = torch.ones(target.hidden_size)
    return {"num_nextn_predict_layers": 1, "mtp_layers_block_type": ["attention", "moe"]}, weights


def _averaging_again(target: Target, place: str) -> Weights:
    """The attention that averages, of embeddings mostly; half of the average comes from the hidden state."""
    embedding, average = target.columns()
    weights = target.below(target.averaging, place)
    values = f"{place}v_proj.weight"
    weights[values] = weights[values] @ (embedding + LEAK * average)
    weights[f"{place}o_proj.weight"] /= 2
    return weights


def _llama_layer(layer: str, values: torch.Tensor, output: torch.Tensor) -> Weights:
    """A layer whose MLP adds as little as the target's layers do; queries and keys are as the values."""
    hidden, inner = len(output), 2 * len(output)
    shapes = {"gate_proj": (inner, hidden), "up_proj": (inner, hidden), "down_proj": (hidden, inner)}
    weights: Weights = {
        f"{layer}{name}_layernorm.weight": torch.ones(hidden) for name in ("input", "post_attention")
    }
    for name, shape in shapes.items():
        gain = MATRIX_GAIN * (LAYER_GAIN if name == "down_proj" else 1)
        spec = TensorSpec(f"{layer}mlp.{name}.weight", shape, std=gain / shape[1] ** 0.5)
        weights[spec.name] = random_tensor(spec, 0, torch.float32)
    for part, weight in (("q", values.clone()), ("k", values.clone()), ("v", values), ("o", output)):
        weights[f"{layer}self_attn.{part}_proj.weight"] = weight
    return weights


def _llama_config(target: Target, architecture: str, num_halves: int = 1) -> dict[str, Any]:
    shared: Iterable[str] = ("vocab_size", "max_position_embeddings", "rms_norm_eps", "dtype", "eos_token_id")
    return {name: target.config[name] for name in shared if name in target.config} | {
        "architectures": [architecture],
        "model_type": "llama",
        "hidden_size": target.hidden_size,
        "intermediate_size": 2 * target.hidden_size,
        "num_hidden_layers": 1,
        "num_attention_heads": num_halves * target.num_heads,
        "num_key_value_heads": num_halves * target.num_heads,
        "head_dim": target.head_size,
        "hidden_act": "silu",
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "tie_word_embeddings": False,
    }


Layer = Callable[[Target], tuple[dict[str, Any], Weights]]
MTP: Mapping[str, Layer] = {
    "deepseek_v3": _mtp_of_deepseek,
    "deepseek_v32": _mtp_of_deepseek,
    "glm4_moe": _mtp_of_glm,
    "qwen2": _mtp_of_mimo,
    "qwen3_next": _mtp_of_qwen,
    "qwen3_5_moe": _mtp_of_qwen,
    "nemotron_h": _mtp_of_nemotron,
}
DRAFTS: Mapping[str, Layer] = {
    "standalone": _standalone,
    "eagle": _eagle,
    "eagle3": _eagle3,
    "mtp": _mtp,
    "mtp-layers": _mtp_layers,
}
