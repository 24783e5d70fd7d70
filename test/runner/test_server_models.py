"""What a server says at its start to weights, adapters, images and expert ids (no server is started)."""

import json
import os
import pickle
import re
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sglang.srt.managers import tokenizer_manager
from sglang.srt.managers.tokenizer_manager import TokenizerManager
from tiny_models import tiny_model

from release_differences import OF_0_5_23, let_states_be_kept
from server_doors import LAYERED, check
from sglang_layered.config import LayeredConfig
from sglang_layered.errors import UnsupportedError
from sglang_layered.refusals import REFUSALS, SPECULATING, Start
from sglang_layered.refused_flags import RECURRENT, SPECULATION


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
        pytest.param(("--lora-backend", "triton_v2"), marks=OF_0_5_23),
    ],
)
def test_what_adapters_do_not_work_with_is_refused(tiny_qwen3_moe: Path, flags: tuple[str, ...]) -> None:
    check(tiny_qwen3_moe, *LAYERED, *ADAPTERS)
    with pytest.raises(UnsupportedError, match=rf"--enable-lora .*does not work with {flags[0]}: .*; .*"):
        check(tiny_qwen3_moe, *LAYERED, *ADAPTERS, *flags)


@pytest.mark.parametrize("flag", RECURRENT)
def test_what_recurrent_layers_do_not_work_with_is_refused(flag: str) -> None:
    model = tiny_model("qwen3_next")
    check(model, *LAYERED, *NO_BUFFER)
    asked = ADAPTERS if flag == "--enable-lora" else (flag, "2") if flag == "--pp-size" else (flag,)
    with pytest.raises(UnsupportedError, match=rf"with recurrent layers does not work with {flag}: .*; .*"):
        check(model, *LAYERED, *NO_BUFFER, *asked)


def test_kimi_k3s_sums_in_place_are_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """SGLang turns them on by itself on Blackwell, where nothing is said."""
    model, variable = tiny_model("kimi_k3"), "SGLANG_K3_AR_FUSION"
    monkeypatch.setenv(variable, "1")
    with pytest.raises(UnsupportedError, match=rf"{variable}=1: .*; unset it"):
        check(model, *LAYERED, *NO_BUFFER)
    monkeypatch.delenv(variable)
    check(model, *NO_BUFFER)
    assert variable not in os.environ
    check(model, *LAYERED, *NO_BUFFER)
    check(model, *LAYERED, *NO_BUFFER)  # nor does what we said ourselves refuse a second time
    assert os.environ[variable] == "False"


@OF_0_5_23
def test_the_server_in_rust_is_refused_in_layered_mode_alone(
    tiny_qwen3_moe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SGLANG_RUST_SERVER", "1")
    check(tiny_qwen3_moe)
    with pytest.raises(UnsupportedError, match=r"SGLANG_RUST_SERVER=1: .*; unset it"):
        check(tiny_qwen3_moe, *LAYERED)


@pytest.mark.parametrize("flag", SPECULATION)
def test_what_speculative_decoding_does_not_work_with_is_refused(flag: str) -> None:
    applies = [
        rows for asked, rows in REFUSALS.items() if asked(Start(LayeredConfig("layered"), speculating()))
    ]
    texts = {
        text: refused for rows in applies for text, refused in rows.items() if f"work with {flag}:" in text
    }
    [(text, refused)] = texts.items()
    assert re.fullmatch(r"--speculative-algorithm in layered mode .*: \S.*; \S.*", text)
    name = flag.removeprefix("--").replace("-", "_")
    assert refused(Start(LayeredConfig("layered"), speculating(**{name: 2})))
    assert not refused(Start(LayeredConfig("layered"), speculating()))


def speculating(**flags: Any) -> Any:
    """ServerArgs with drafts, and nothing else set."""
    given = {"speculative_algorithm": "NGRAM", "enable_metrics": True, **flags}
    names = (flag.removeprefix("--").replace("-", "_") for flag in SPECULATION)
    return SimpleNamespace(**(dict.fromkeys(names) | given))


def test_drafts_are_verified_in_steps_of_sglangs_own(tiny_qwen3_moe: Path) -> None:
    asked = (*LAYERED, "--speculative-algorithm", "NGRAM")
    check(tiny_qwen3_moe, *asked)
    message = r"--speculative-algorithm in layered mode .*--layered-group-attention pair: .*; use"
    with pytest.raises(UnsupportedError, match=message):
        check(tiny_qwen3_moe, *asked, "--layered-group-attention", "pair")


@pytest.mark.parametrize(
    ("execution", "device", "is_refused"),
    [
        ("fused", "cpu", False),
        ("auto", "cpu", False),
        ("fused", "cuda", False),  # the default: the log says that steps are sequential
        ("sequential", "cuda", False),
        ("auto", "cuda", True),
        ("concurrent", "cuda", True),
    ],
)
def test_drafts_and_prompts_share_a_forward_on_a_cpu_alone(
    execution: str, device: str, is_refused: bool
) -> None:
    start = Start(LayeredConfig("layered", layered_execution=execution), speculating(device=device))
    [refused] = [
        applies
        for asked, rows in REFUSALS.items()
        if asked(start)
        for text, applies in rows.items()
        if text.startswith(f"{SPECULATING} does not work with --layered-execution")
    ]
    assert refused(start) == is_refused


@pytest.mark.parametrize(
    ("arch", "flags", "message"),
    [
        ("qwen3_next", "NGRAM", None),
        ("qwen3_5_moe", "NGRAM", None),
        ("qwen3_5_moe", "EAGLE", None),
        ("qwen3_next", "STANDALONE", "with STANDALONE: states of recurrent .* EAGLE .*; leave"),
        ("nemotron_h", "EAGLE --enable-streaming-session", "work with --enable-streaming-session .*; leave"),
        ("lfm2_moe", "NGRAM", "with NGRAM: states of recurrent .* EAGLE .*; leave"),
        (
            "qwen3_next",
            "EAGLE --speculative-num-steps 2 --speculative-eagle-topk 2 --speculative-num-draft-tokens 4",
            "with --speculative-eagle-topk 2 for .* use 1",
        ),
        ("qwen3_vl_moe", "NGRAM", None),
        ("qwen3_vl_moe", "EAGLE", "cannot serve .* of images .* in this family; use NGRAM"),
    ],
)
def test_drafts_of_what_was_compared_are_served(arch: str, flags: str, message: str | None) -> None:
    """Where a verified step takes states back, and where a draft is told of images."""
    recurrent = NO_BUFFER if arch != "qwen3_vl_moe" else ()
    asked = (*LAYERED, *recurrent, "--speculative-algorithm", *flags.split())
    if flags == "STANDALONE":
        asked += ("--speculative-draft-model-path", str(tiny_model("llama")))
    refusal = pytest.raises(UnsupportedError, match=f"--speculative-algorithm .*{message}")
    with refusal if message else nullcontext():
        check(tiny_model(arch), *asked)


def test_slots_that_states_take_late_are_refused_with_drafts(monkeypatch: pytest.MonkeyPatch) -> None:
    let_states_be_kept(monkeypatch)
    lazy = ("--mamba-radix-cache-strategy", "extra_buffer_lazy")
    check(tiny_model("qwen3_next"), *LAYERED, *lazy)
    with pytest.raises(UnsupportedError, match=r"work with .* extra_buffer_lazy: .*; use extra_buffer"):
        check(tiny_model("qwen3_next"), *LAYERED, *lazy, "--speculative-algorithm", "NGRAM")


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


ANSWERS = {
    ("image", ()): None,
    ("image", LAYERED): None,
    ("image", (*LAYERED, "--limit-mm-data-per-request", '{"image": 0, "video": 9}')): "limit 0 per request",
    ("image", (*LAYERED, "--pp-size", "2")): "limit 0 .*use chunked",
    ("image", (*LAYERED, *ADAPTERS)): "limit 0 .*use chunked",
    ("video", ()): None,
    ("video", (*LAYERED, "--limit-mm-data-per-request", '{"video": 9}')): "limit 0 .*use chunked",
    ("audio", LAYERED): "limit 0 .*use chunked",
}


@pytest.mark.parametrize(("kind", "flags"), ANSWERS)
def test_layered_mode_answers_what_is_no_text_with_an_error_of_sglang(
    kind: str, flags: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    message = ANSWERS[kind, flags]
    args = check(tiny_model("qwen3_vl_moe"), *flags)
    nothing = {"image_data": None, "video_data": None, "audio_data": None}
    monkeypatch.setattr(tokenizer_manager, "get_mm", lambda: args, raising=False)  # what 0.5.23 publishes
    judge = partial(TokenizerManager._validate_mm_limits, SimpleNamespace(server_args=args))
    judge(SimpleNamespace(**nothing))
    request = SimpleNamespace(**nothing | {f"{kind}_data": ["data"]})
    with pytest.raises(ValueError, match=message) if message else nullcontext():
        judge(request)


def test_the_warm_up_which_sends_an_image_is_left_out_where_images_are_refused() -> None:
    model = tiny_model("qwen3_vl_moe")
    assert not check(model, *LAYERED).skip_server_warmup
    assert check(model, *LAYERED, "--skip-server-warmup").skip_server_warmup
    assert check(model, *LAYERED, "--pp-size", "2").skip_server_warmup


def test_a_refused_limit_travels_as_a_number_does() -> None:
    limits = check(tiny_model("qwen3_vl_moe"), *LAYERED).limit_mm_data_per_request
    assert json.loads(json.dumps(limits)) == {"video": 0, "audio": 0}
    assert str(pickle.loads(pickle.dumps(limits))["video"]) == str(limits["video"]) != "0"
