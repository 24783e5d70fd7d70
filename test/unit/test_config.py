"""Flags: declared once, checked at construction, refused with the flag's name."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest
from transformers import PreTrainedConfig

from sglang_layered.config import LayeredConfig
from sglang_layered.errors import ConfigError, UnsupportedError
from sglang_layered.refusals import REFUSALS, refuse


@pytest.mark.parametrize(
    ("field", "value", "flag"),
    [
        ("prefill_mode", "sideways", "--prefill-mode sideways"),
        ("layered_group_tokens", 0, "--layered-group-tokens 0"),
        ("layered_group_tokens", -5, "--layered-group-tokens -5"),
        ("layered_num_groups", 0, "--layered-num-groups 0"),
        ("layered_group_attention", "triton", "--layered-group-attention triton"),
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


def flashinfer_args(model: dict | None = None, **changes: object) -> SimpleNamespace:
    plain = {
        "attention_arch": SimpleNamespace(name="MHA"),
        "has_attention_sinks": False,
        "is_hybrid_swa": False,
        "hf_config": PreTrainedConfig(),
        "linear_attn_registry_result": None,
    }
    config = SimpleNamespace(**plain | (model or {}))
    backends = changes.pop("backends", ("flashinfer", "flashinfer"))
    return SimpleNamespace(
        **{"kv_cache_dtype": "auto", "model_path": "some/model"} | changes,
        get_attention_backends=lambda: backends,
        get_model_config=lambda: config,
    )


GROUP_ATTENTION = {
    asked: rows
    for asked, rows in REFUSALS.items()
    if any(text.startswith("--layered-group-attention") for text in rows)
}


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (flashinfer_args(backends=("fa3", "flashinfer")), "other than flashinfer"),
        (flashinfer_args(backends=(None, None)), "add --attention-backend flashinfer"),
        (flashinfer_args(kv_cache_dtype="fp8_e4m3"), "--kv-cache-dtype"),
        (flashinfer_args(enable_deterministic_inference=True), "--enable-deterministic-inference"),
        (flashinfer_args(enable_mis=True), "--enable-mis"),
        (flashinfer_args({"attention_arch": SimpleNamespace(name="MLA")}), "attention is MLA"),
        (flashinfer_args({"has_attention_sinks": True}), "attention sinks"),
        (flashinfer_args({"is_hybrid_swa": True}), "--disable-hybrid-swa-memory"),
    ],
)
@pytest.mark.parametrize("kind", ["pair", "pod"])
def test_group_attention_refuses_what_its_kernels_cannot_serve(
    kind: str, args: SimpleNamespace, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sglang_layered.refusals.REFUSALS", GROUP_ATTENTION)
    refuse(LayeredConfig("layered", layered_group_attention=kind), flashinfer_args())
    refuse(LayeredConfig("layered", layered_group_attention="backends"), args)
    refuse(LayeredConfig("chunked", layered_group_attention=kind), args)
    with pytest.raises(UnsupportedError, match=f"--layered-group-attention {kind} .*{reason}"):
        refuse(LayeredConfig("layered", layered_group_attention=kind), args)


def test_auto_group_attention_is_the_two_backends() -> None:
    assert LayeredConfig().group_attention == "backends"
    assert LayeredConfig(layered_group_attention="pod").group_attention == "pod"


def test_seams_load_neither_torch_nor_sglang() -> None:
    code = "import sys, sglang_layered.seams; print({'torch', 'sglang'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
