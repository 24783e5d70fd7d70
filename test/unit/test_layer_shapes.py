"""Layer sizes read from configurations, by hand and family by family; what rows cost in such layers."""

from __future__ import annotations

import pytest
from transformers import AutoConfig, PreTrainedConfig

from sglang_layered.core.layer_shape import LayerShape
from sglang_layered.models.layer_shapes import read_layer_shapes
from sglang_layered_lab.models.catalogue import FAMILIES
from sglang_layered_lab.models.tensors import is_of_transformers


def tiny(arch: str) -> tuple[LayerShape, ...]:
    recipe = FAMILIES[arch]
    config = AutoConfig.for_model(recipe.model_type or arch, **recipe.config_fields())
    return read_layer_shapes(config.get_text_config(), param_bytes=4)


def published(model_type: str, **fields: object) -> tuple[LayerShape, ...]:
    return read_layer_shapes(AutoConfig.for_model(model_type, **fields))


def test_qwen3_30b_a3b_by_hand() -> None:
    layers = published(
        "qwen3_moe",
        num_hidden_layers=48,
        hidden_size=2048,
        num_attention_heads=32,
        num_key_value_heads=4,
        head_dim=128,
        num_experts=128,
        num_experts_per_tok=8,
        moe_intermediate_size=768,
        vocab_size=151936,
    )
    assert len(layers) == 48
    assert set(layers) == {
        LayerShape(
            dense_params=2048 * 128 * (2 * 32 + 2 * 4) + 128 * 2048 + 2 * 2048 + 2 * 128,
            num_experts=128,
            num_experts_per_token=8,
            expert_params=3 * 2048 * 768,
            attention_width=32 * 128,
        )
    }
    assert sum(layer.expert_bytes for layer in layers) / 1e9 == pytest.approx(58.0, abs=0.05)


def test_gpt_oss_20b_by_hand() -> None:
    layers = published(
        "gpt_oss", num_hidden_layers=24, num_local_experts=32, hidden_size=2880, intermediate_size=2880
    )
    biases = 2 * 2880 + 2880
    assert {layer.expert_params for layer in layers} == {3 * 2880 * 2880 + biases}
    assert [layer.window for layer in layers] == [128, None] * 12
    assert {(layer.num_experts, layer.num_experts_per_token) for layer in layers} == {(32, 4)}
    assert sum(layer.expert_bytes for layer in layers) / 1e9 == pytest.approx(38.2, abs=0.05)


def test_blocks_of_one_mixer_by_hand() -> None:
    """Nemotron-H with some of its kernels missing, which transformers would ask its hub for."""
    layers = published(
        "nemotron_h",
        layers_block_type=["mamba", "moe", "attention", "mlp"],
        hidden_size=2688,
        n_routed_experts=8,
        num_experts_per_tok=6,
        moe_intermediate_size=1856,
        num_attention_heads=32,
        head_dim=128,
    )
    assert [layer.attention_width for layer in layers] == [0, 0, 32 * 128, 0]
    assert [layer.num_experts for layer in layers] == [0, 8, 0, 0]
    assert [layer.num_experts_per_token for layer in layers] == [0, 6, 0, 0]
    assert layers[1].expert_params == 2 * 2688 * 1856


def test_layers_with_a_state_attend_to_nothing() -> None:
    layers = tiny("qwen3_next")
    assert [layer.attention_width for layer in layers] == [0, 0, 0, 4 * 32, 0, 0, 0]
    assert {(layer.num_experts, layer.num_experts_per_token) for layer in layers} == {(16, 4)}
    assert {layer.expert_params for layer in layers} == {3 * 128 * 64}


def test_dense_layers_first_and_latent_attention() -> None:
    layers = tiny("deepseek_v3")
    assert [layer.num_experts for layer in layers] == [0, 0, *[16] * 5]
    assert layers[2].expert_params == 3 * 128 * 64
    assert layers[0].attention_width == 4 * (32 + 16 + 32) // 2
    shared = 3 * 128 * 64
    router = 16 * 128
    assert layers[0].dense_params - layers[2].dense_params == 3 * 128 * 256 - shared - router


def test_experts_in_every_second_layer() -> None:
    assert [layer.num_experts for layer in tiny("exaone_moe")] == [0, 16, 0, 16, 0, 16, 0]


KNOWN = [arch for arch in FAMILIES if is_of_transformers(FAMILIES[arch])]


@pytest.mark.parametrize("arch", [arch for arch in KNOWN if "moe" not in arch])
def test_every_parameter_of_a_layer_is_counted_once(arch: str) -> None:
    from sglang_layered_lab.models.checkpoint import empty_model

    model = empty_model(FAMILIES[arch])
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters() if "vision" not in name}
    inside = sum(size for name, size in sizes.items() if ".layers." in name)
    assert sum(item.dense_params + item.num_experts * item.expert_params for item in tiny(arch)) == inside


def test_a_model_that_transformers_does_not_know_has_no_sizes() -> None:
    class Unknown(PreTrainedConfig):
        model_type = "unheard_of"

    assert read_layer_shapes(Unknown()) == ()


MOE = LayerShape(1000, num_experts=8, num_experts_per_token=2, expert_params=100, attention_width=10)


def test_rows_read_more_experts_the_more_they_are() -> None:
    assert MOE.bytes_read(1) == pytest.approx(2 * (1000 + 2 * 100))
    assert MOE.bytes_read(2) == pytest.approx(2 * (1000 + 8 * (1 - (6 / 8) ** 2) * 100))
    assert MOE.bytes_read(500) == pytest.approx(2 * (1000 + 800))
    assert LayerShape(1000).bytes_read(500) == 2000


def test_a_window_bounds_what_attention_costs() -> None:
    assert MOE.flop(3, 50) == 3 * (2 * 1200 + 4 * 10 * 50)
    assert LayerShape(1000, attention_width=10, window=20).flop(3, 50) == 3 * (2 * 1000 + 4 * 10 * 20)


def test_few_rows_cost_bytes_and_many_rows_cost_flop() -> None:
    assert MOE.cost(1, 10, flop_per_byte=100) == MOE.bytes_read(1)
    assert MOE.cost(1000, 10, flop_per_byte=100) == MOE.flop(1000, 10) / 100
