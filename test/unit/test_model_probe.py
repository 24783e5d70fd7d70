"""`doctor --model-path`: sizes of published models, and models that are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from sglang_layered.cli import doctor
from sglang_layered.cli.main import cli
from sglang_layered.errors import ConfigError
from sglang_layered_lab.models import make_model

QWEN3_30B_A3B = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "dtype": "bfloat16",
    "num_hidden_layers": 48,
    "hidden_size": 2048,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
    "intermediate_size": 6144,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
}
GPT_OSS_20B = {
    "architectures": ["GptOssForCausalLM"],
    "model_type": "gpt_oss",
    "dtype": "bfloat16",
    "num_hidden_layers": 24,
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "num_local_experts": 32,
    "num_experts_per_tok": 4,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 201088,
}


def told(model_path: Path) -> dict[str, str]:
    result = CliRunner().invoke(cli, ["doctor", "--model-path", str(model_path)])
    assert not isinstance(result.exception, Exception) or isinstance(result.exception, SystemExit)
    lines = [line[4:] for line in result.output.splitlines() if line[:4] in ("ok  ", "!!  ")]
    return {line[:14].strip(): line[14:] for line in lines}


@pytest.fixture
def published(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(request.param))
    return tmp_path


@pytest.mark.parametrize("published", [QWEN3_30B_A3B], indirect=True)
def test_qwen3_30b_a3b(published: Path) -> None:
    seen = told(published)
    assert seen["layers"] == "48"
    assert seen["groups"] == "16 of 3 layers for 8192 prompt tokens"
    assert seen["experts"] == "128 in each of 48 layers, 8 a token: 1.208 GB a layer, 58.0 GB in all"
    assert seen["parked"] == "8,192 B a prompt token, 67 MB of 8192"
    assert seen["layered mode"] == "supported"


@pytest.mark.parametrize("published", [GPT_OSS_20B], indirect=True)
def test_gpt_oss_20b(published: Path) -> None:
    seen = told(published)
    assert seen["groups"] == "16 of 2 and 1 layers for 8192 prompt tokens"
    assert seen["experts"] == "32 in each of 24 layers, 4 a token: 1.593 GB a layer, 38.2 GB in all"
    assert seen["parked"] == "11,520 B a prompt token, 94 MB of 8192"


@pytest.mark.parametrize(
    "published", [GPT_OSS_20B | {"quantization_config": {"quant_method": "mxfp4"}}], indirect=True
)
def test_gpt_oss_20b_as_it_is_released(published: Path) -> None:
    # 4 bits a weight, a byte for 32 of them, biases of 2 bytes: 13.24 MB an expert.
    wanted = "32 in each of 24 layers, 4 a token: 0.424 GB a layer, 10.2 GB in all"
    assert told(published)["experts"] == wanted


@pytest.mark.parametrize(
    "published", [GPT_OSS_20B | {"quantization_config": {"quant_method": "humming"}}], indirect=True
)
def test_a_refused_model_is_told_why(published: Path) -> None:
    assert told(published)["layered mode"].startswith(
        "refused: GptOssForCausalLM has weights of the method humming, which"
    )


def test_a_dense_model_has_no_experts(tmp_path: Path) -> None:
    assert told(make_model("llama", "tiny", tmp_path / "llama"))["experts"].startswith("none: a dense model")


@pytest.mark.parametrize("where", ["{}/none", "./none", "none/of/these"])
def test_a_folder_that_is_not_there_is_one_line(tmp_path: Path, where: str) -> None:
    path = where.format(tmp_path)
    result = CliRunner().invoke(cli, ["doctor", "--model-path", path])
    assert isinstance(result.exception, ConfigError)
    assert str(result.exception).startswith(f"--model-path: there is no folder {path}; give a folder with")


def test_a_name_that_nobody_knows_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(model_path: str) -> None:
        raise OSError(f"{model_path} is not known\nCheck your connection")

    monkeypatch.setattr(doctor, "probe", unknown)
    result = CliRunner().invoke(cli, ["doctor", "--model-path", "some/model"])
    assert isinstance(result.exception, ConfigError)
    assert str(result.exception).startswith(
        "--model-path: some/model cannot be read (some/model is not known); give"
    )
