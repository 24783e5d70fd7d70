"""Flags: declared once, checked at construction, refused with the flag's name."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest

from sglang_layered.config import LayeredConfig
from sglang_layered.errors import ConfigError
from sglang_layered.refusals import model_refusal


@pytest.mark.parametrize(
    ("field", "value", "flag"),
    [
        ("prefill_mode", "sideways", "--prefill-mode sideways"),
        ("layered_group_tokens", 0, "--layered-group-tokens 0"),
        ("layered_group_tokens", -5, "--layered-group-tokens -5"),
        ("layered_num_groups", 0, "--layered-num-groups 0"),
    ],
)
def test_bad_values_name_the_flag(field: str, value: object, flag: str) -> None:
    with pytest.raises(ConfigError, match=flag):
        LayeredConfig(**{field: value})


def test_more_groups_than_layers_is_refused() -> None:
    config = LayeredConfig(layered_num_groups=9)
    config.check_depth(9)
    with pytest.raises(ConfigError, match=r"--layered-num-groups 9.*8 layers"):
        config.check_depth(8)


def test_flags_are_read_back_from_server_args() -> None:
    args = SimpleNamespace(prefill_mode="layered", layered_group_tokens=64, unrelated=1)
    assert LayeredConfig.from_server_args(args) == LayeredConfig("layered", 64)


def model_config(**properties: object) -> SimpleNamespace:
    text = SimpleNamespace(**properties.pop("text", {}))
    hugging_face = SimpleNamespace(architectures=["SomeModel"], **properties.pop("hugging_face", {}))
    plain = {"is_generation": True, "is_multimodal": False}
    return SimpleNamespace(**plain | properties, hf_config=hugging_face, hf_text_config=text)


@pytest.mark.parametrize(
    ("properties", "reason"),
    [
        ({"is_generation": False}, "does not generate text"),
        ({"is_multimodal": True}, "images or audio"),
        ({"hugging_face": {"quantization_config": {"quant_method": "mxfp4"}}}, "quantized"),
        ({"text": {"layer_types": ["full_attention", "linear_attention"]}}, "recurrent"),
        ({"text": {"mamba_d_state": 16}}, "recurrent"),
    ],
)
def test_models_that_layered_mode_cannot_serve_are_refused(properties: dict, reason: str) -> None:
    assert model_refusal(model_config()) is None
    assert model_refusal(model_config(text={"layer_types": ["full_attention", "sliding_attention"]})) is None
    assert reason in str(model_refusal(model_config(**properties)))


def test_seams_load_neither_torch_nor_sglang() -> None:
    code = "import sys, sglang_layered.seams; print({'torch', 'sglang'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
