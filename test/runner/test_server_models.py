"""What a server says at its start to weights, adapters, images and expert ids (no server is started)."""

from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from sglang.srt.managers.tokenizer_manager import TokenizerManager
from tiny_models import tiny_model

from server_doors import LAYERED, check
from sglang_layered.errors import UnsupportedError
from sglang_layered.refusals import RECURRENT


def test_weights_quantized_at_load_are_served_unless_nobody_ran_the_method(tiny_qwen3_moe: Path) -> None:
    assert check(tiny_qwen3_moe, *LAYERED, "--quantization", "fp8").quantization == "fp8"
    with pytest.raises(
        UnsupportedError, match=r"cannot serve .* petit_nvfp4, which runs on AMD GPUs only.*; "
    ):
        check(tiny_qwen3_moe, *LAYERED, "--quantization", "petit_nvfp4")


def test_policy_balanced_needs_the_bytes_of_the_layers(tiny_qwen3_moe: Path) -> None:
    balanced = (*LAYERED, "--layered-policy", "balanced")
    check(tiny_qwen3_moe, *balanced)
    unknown = ("--quantization", "bitsandbytes", "--load-format", "auto")
    check(tiny_qwen3_moe, *LAYERED, *unknown)
    check(tiny_qwen3_moe, *balanced, "--layered-num-groups", "2", *unknown)
    with pytest.raises(
        UnsupportedError, match=r"--layered-policy balanced: .* are not known; use token-target"
    ):
        check(tiny_qwen3_moe, *balanced, *unknown)


# What SGLang takes on a CPU.
NO_BUFFER = ("--mamba-radix-cache-strategy", "no_buffer", "--disable-overlap-schedule")
ADAPTERS = ("--enable-lora", "--max-lora-rank", "8", "--lora-target-modules", "o_proj")


@pytest.mark.parametrize(
    "flags",
    [
        ("--enable-lora-overlap-loading", "--max-loaded-loras", "8"),
        ("--pp-size", "2"),
        ("--tp-size", "2"),
    ],
)
def test_what_adapters_do_not_work_with_is_refused(tiny_qwen3_moe: Path, flags: tuple[str, ...]) -> None:
    check(tiny_qwen3_moe, *LAYERED, *ADAPTERS)
    with pytest.raises(UnsupportedError, match=rf"--enable-lora .*does not work with {flags[0]}: .*; .*"):
        check(tiny_qwen3_moe, *LAYERED, *ADAPTERS, *flags)


def test_adapters_of_latent_attention_are_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"--enable-lora .*deepseek_v2: .*\(MLA\).*; serve merged"):
        check(tiny_model("deepseek_v2"), *LAYERED, *ADAPTERS)


@pytest.mark.parametrize("flag", RECURRENT)
def test_what_recurrent_layers_do_not_work_with_is_refused(flag: str) -> None:
    model = tiny_model("qwen3_next")
    check(model, *LAYERED, *NO_BUFFER)
    asked = ADAPTERS if flag == "--enable-lora" else (flag, "2") if flag == "--pp-size" else (flag,)
    with pytest.raises(UnsupportedError, match=rf"with recurrent layers does not work with {flag}: .*; .*"):
        check(model, *LAYERED, *NO_BUFFER, *asked)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--pp-size", "2"), r"with --pp-size 2 SGLang returns the ids of one stage's layers only; leave"),
        (("--enable-hierarchical-cache",), "SGLang keeps expert ids by KV slot, .*; leave"),
    ],
)
def test_expert_ids_that_sglang_itself_gets_wrong_are_refused(
    tiny_qwen3_moe: Path, flags: tuple[str, ...], message: str
) -> None:
    asked = (*LAYERED, "--enable-return-routed-experts")
    check(tiny_qwen3_moe, *asked)
    with pytest.raises(UnsupportedError, match=f"--enable-return-routed-experts: {message}"):
        check(tiny_qwen3_moe, *asked, *flags)


@pytest.mark.parametrize("kind", ["image", "video", "audio"])
@pytest.mark.parametrize("mode", [(), LAYERED])
def test_layered_mode_answers_what_is_no_text_with_an_error_of_sglang(
    kind: str, mode: tuple[str, ...]
) -> None:
    args = check(tiny_model("qwen3_vl_moe"), *mode)
    assert args.skip_server_warmup == bool(mode), "the warm-up sends an image to such a model"
    nothing = {"image_data": None, "video_data": None, "audio_data": None}
    judge = partial(TokenizerManager._validate_mm_limits, SimpleNamespace(server_args=args))
    judge(SimpleNamespace(**nothing))
    request = SimpleNamespace(**nothing | {f"{kind}_data": ["data"]})
    with pytest.raises(ValueError, match="limit 0") if mode else nullcontext():
        judge(request)
