"""The doors to a server: help, parsing, and refusals before any work is lost (no server is started)."""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from sglang.srt.server_args import ServerArgs

from server_doors import LAYERED, check, judge
from sglang_layered.config import LayeredConfig
from sglang_layered.errors import ConfigError, LayeredPrefillError, UnsupportedError
from sglang_layered.flag_fields import flag_name


def test_help_shows_every_flag_under_one_heading() -> None:
    parser = argparse.ArgumentParser()
    ServerArgs.add_cli_args(parser)
    before, _, ours = parser.format_help().partition("\nlayered prefill:\n")
    assert "  --prefill-mode {chunked,layered}\n" in ours and "  --attention-backend " in before
    shown = [line.split()[0] for line in ours.splitlines() if line.startswith("  --")]
    assert shown == [flag_name(item.name) for item in fields(LayeredConfig)]
    options = before.partition("\noptions:\n")[2]
    assert not [flag for flag in shown if f"  {flag} " in options]
    assert parser.parse_args(["--model-path", "m", "--layered-group-tokens", "7"]).layered_group_tokens == 7


@pytest.mark.parametrize("mode", [(), LAYERED])
def test_both_modes_run_with_the_overlap_scheduler_unless_told(
    tiny_qwen3_moe: Path, mode: tuple[str, ...]
) -> None:
    assert not check(tiny_qwen3_moe, *mode).disable_overlap_schedule
    assert check(tiny_qwen3_moe, *mode, "--disable-overlap-schedule").disable_overlap_schedule


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--layered-group-tokens", "0"), "--layered-group-tokens 0"),
        (("--layered-group-tokens", "-3"), "--layered-group-tokens -3"),
        (("--layered-num-groups", "9"), r"--layered-num-groups 9.*8 layers"),
        (("--layered-prompt-sms", "0", "--layered-execution", "auto"), "--layered-prompt-sms 0"),
        (("--layered-prompt-sms", "60"), "--layered-prompt-sms 60: it needs --layered-execution concurrent"),
        (("--layered-graph-granularity", "-1"), "--layered-graph-granularity -1"),
        (("--layered-graph-granularity", "9"), r"--layered-graph-granularity 9.*8 layers"),
        (("--layered-graph-group-rows", "512", "0"), "--layered-graph-group-rows 512 0: give different"),
        (("--layered-graph-group-rows", "8", "8"), "--layered-graph-group-rows 8 8: give different"),
        (
            ("--layered-graph-group-rows", "8", "--layered-execution", "sequential"),
            "--layered-graph-group-rows: with --layered-execution sequential",
        ),
        (("--layered-policy", "fastest"), r"--layered-policy fastest.*unknown policy"),
        (("--layered-policy", "json:Absent"), "--layered-policy json:Absent"),
        (("--layered-listeners", "json:Absent"), "--layered-listeners json:Absent"),
        (("--layered-listeners", "jsonl"), "--layered-listeners jsonl: .*jsonl=PATH"),
        (("--layered-listeners", "telepathy=1"), "--layered-listeners telepathy=1: unknown listener"),
    ],
)
def test_bad_values_are_refused(tiny_qwen3_moe: Path, flags: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check(tiny_qwen3_moe, *LAYERED, *flags)


@pytest.mark.parametrize(
    "flags",
    [
        ("--enable-mixed-chunk",),
        ("--disaggregation-mode", "prefill"),
        ("--enable-two-batch-overlap",),
        ("--is-embedding",),
        ("--moe-a2a-backend", "deepep"),
        ("--moe-dense-tp-size", "1"),
        ("--enable-lmcache",),
        ("--enable-flexkv",),
        ("--radix-cache-backend", "flexkv"),
        ("--enable-forward-pass-metrics",),
    ],
)
def test_unsupported_flags_are_named_with_reason_and_remedy(
    tiny_qwen3_moe: Path, flags: tuple[str, ...]
) -> None:
    with pytest.raises(UnsupportedError, match=rf"does not work with {flags[0]}: .*; .*"):
        check(tiny_qwen3_moe, *LAYERED, *flags)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--layered-execution", "concurrent"), "concurrent: it needs two CUDA streams .* is cpu; use"),
        (("--layered-execution", "auto", "--tp-size", "2"), "auto: with --tp-size .* name a strategy"),
        (
            ("--layered-execution", "sequential", "--pp-size", "2"),
            "sequential: a pipeline stage .* use fused",
        ),
    ],
)
def test_an_execution_that_cannot_run_is_refused(
    tiny_qwen3_moe: Path, flags: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UnsupportedError, match=f"--layered-execution {message}"):
        check(tiny_qwen3_moe, *LAYERED, *flags)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--enable-hierarchical-cache",), r"--enable-hierarchical-cache: it is not tested with --pp-size 2"),
        (("--layered-check-invariants", "strict"), "--layered-check-invariants strict: .* use basic"),
        (("--layered-policy", "auto"), "--layered-policy auto: .* use token-target"),
    ],
)
def test_what_pipeline_stages_do_not_do_is_refused(
    tiny_qwen3_moe: Path, flags: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UnsupportedError, match=message):
        check(tiny_qwen3_moe, *LAYERED, "--pp-size", "2", *flags)


@pytest.fixture
def foreign_policies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "examples"))


def test_a_foreign_policy_runs_on_stages_only_when_it_says_so(
    tiny_qwen3_moe: Path, foreign_policies: None
) -> None:
    stages = (*LAYERED, "--pp-size", "2", "--layered-policy")
    with pytest.raises(UnsupportedError, match=r"EveryStep: pipeline stages .* \(RUNS_ON_STAGES\); use"):
        check(tiny_qwen3_moe, *stages, "policy_every_step:EveryStep")
    check(tiny_qwen3_moe, *stages, "policy_by_load:ByLoad")
    check(tiny_qwen3_moe, *stages, "one_capability:OnStages")


def test_stages_that_learn_nothing_keep_no_calibration(tiny_qwen3_moe: Path, tmp_path: Path) -> None:
    flags = ("--pp-size", "2", "--layered-policy", "one_capability:LearnsOnStages")
    refused = r"--layered-calibration-file .*: with --pp-size 2 no policy hears"
    with pytest.raises(UnsupportedError, match=refused):
        check(tiny_qwen3_moe, *LAYERED, *flags, "--layered-calibration-file", str(tmp_path / "rows.json"))


def test_a_foreign_policy_that_learns_has_a_calibration_file(
    tiny_qwen3_moe: Path, foreign_policies: None, tmp_path: Path
) -> None:
    file = ("--layered-calibration-file", str(tmp_path / "rows.json"))
    check(tiny_qwen3_moe, *LAYERED, "--layered-policy", "policy_every_step:EveryStep", *file)
    with pytest.raises(ConfigError, match=r"--layered-calibration-file .*ByLoad learns no step times"):
        check(tiny_qwen3_moe, *LAYERED, "--layered-policy", "policy_by_load:ByLoad", *file)


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--layered-calibration-file", "/dev/null/rows.json"),
        ("--layered-calibration-file", "/"),
        ("--layered-listeners", "jsonl=/dev/null/steps.jsonl"),
        ("--layered-listeners", "perfetto=/"),
    ],
)
def test_a_path_that_cannot_be_written_is_refused_at_start(
    tiny_qwen3_moe: Path, flag: str, value: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{flag} {value}: .*; give a path that can be written$"):
        check(tiny_qwen3_moe, *LAYERED, "--layered-policy", "auto", flag, value)


def test_flags_of_layered_mode_without_it(
    tiny_qwen3_moe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    listener = ("--layered-listeners", f"jsonl={tmp_path / 'steps.jsonl'}")
    with pytest.raises(ConfigError, match="--layered-listeners without --prefill-mode layered"):
        check(tiny_qwen3_moe, *listener)
    check(tiny_qwen3_moe, *LAYERED, *listener)
    capfd.readouterr()
    check(tiny_qwen3_moe, "--layered-num-groups", "4")  # SGLang sets up logging anew when it parses flags
    told = capfd.readouterr().err
    assert told.count("--layered-num-groups: without --prefill-mode layered these flags do nothing") == 1


def test_limits_need_metrics_or_the_policy_that_keeps_them(tiny_qwen3_moe: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"--slo-tbt-ms .* add --enable-metrics"):
        check(tiny_qwen3_moe, *LAYERED, "--slo-tbt-ms", "50")
    check(tiny_qwen3_moe, *LAYERED, "--slo-tbt-ms", "50", "--layered-policy", "auto")


def test_a_file_for_all_pipeline_stages_is_refused(tiny_qwen3_moe: Path, tmp_path: Path) -> None:
    flags = ("--pp-size", "2", "--layered-listeners")
    with pytest.raises(UnsupportedError, match=r"put \{pp\} into the path"):
        check(tiny_qwen3_moe, *LAYERED, *flags, f"jsonl={tmp_path}/steps.jsonl")
    check(tiny_qwen3_moe, *LAYERED, *flags, f"jsonl={tmp_path}/steps-{{pp}}.jsonl")


EXPERTS = "--enable-expert-traffic-metrics"


@pytest.mark.parametrize("mode", [(), LAYERED])
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--slo-ttft-ms", "0", "--enable-metrics"), "--slo-ttft-ms 0: give a number"),
        (("--slo-tbt-ms", "nan", "--enable-metrics"), "--slo-tbt-ms nan: give a number"),
        (("--slo-tbt-ms", "inf", "--enable-metrics"), "--slo-tbt-ms inf: give a number"),
        (("--slo-tbt-ms", "20"), "add --enable-metrics"),
        (
            ("--enable-energy-metrics", "--nnodes", "2", "--tp-size", "2"),
            "--enable-energy-metrics .*--nnodes",
        ),
        (
            (EXPERTS, "--moe-runner-backend", "flashinfer_trtllm"),
            "flashinfer_trtllm: .* leave one of the two",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused_in_either_mode(
    tiny_qwen3_moe: Path, mode: tuple[str, ...], flags: tuple[str, ...], message: str
) -> None:
    with pytest.raises(LayeredPrefillError, match=message):
        check(tiny_qwen3_moe, *mode, *flags)


def test_expert_traffic_of_a_model_without_experts_is_refused(tiny_llama: Path) -> None:
    with pytest.raises(UnsupportedError, match=f"{EXPERTS}: .* has no Mixture-of-Experts layers"):
        check(tiny_llama, EXPERTS)


def test_flags_of_measuring_are_accepted_in_either_mode(tiny_qwen3_moe: Path) -> None:
    flags = (EXPERTS, "--enable-energy-metrics", "--enable-metrics", "--slo-ttft-ms", "1000.5")
    for mode in ((), LAYERED):
        args = check(tiny_qwen3_moe, *mode, *flags)
        assert (args.enable_expert_traffic_metrics, args.slo_ttft_ms, args.slo_tbt_ms) == (True, 1000.5, None)


@pytest.mark.parametrize("kind", ["pair", "pod"])
def test_group_attention_on_another_backend_is_refused(tiny_qwen3_moe: Path, kind: str) -> None:
    check(tiny_qwen3_moe, "--layered-group-attention", kind)
    check(tiny_qwen3_moe, *LAYERED, "--layered-group-attention", "backends")
    refused = (
        f"--layered-group-attention {kind} does not work with an attention backend other than flashinfer"
    )
    with pytest.raises(UnsupportedError, match=f"{refused}: .*; add --attention-backend flashinfer"):
        check(tiny_qwen3_moe, *LAYERED, "--layered-group-attention", kind)


def test_a_value_that_argparse_never_saw_is_refused(tiny_qwen3_moe: Path) -> None:
    args = ServerArgs(model_path=str(tiny_qwen3_moe), device="cpu", prefill_mode="sideways")
    with pytest.raises(LayeredPrefillError, match="--prefill-mode sideways"):
        judge(args)


def test_a_refusal_from_the_command_line_is_one_line(tiny_qwen3_moe: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "sglang.launch_server",
        "--model-path",
        str(tiny_qwen3_moe),
        "--device",
        "cpu",
    ]
    flags = [*LAYERED, "--speculative-algorithm", "FROZEN_KV_MTP"]
    done = subprocess.run([*command, *flags], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "--prefill-mode layered does not work with --speculative-algorithm:" in errors[0]
