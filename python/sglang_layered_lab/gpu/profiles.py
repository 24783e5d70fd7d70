"""What the stages run on a machine with a GPU and on one without: model, flags, sizes. Data only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

PROJECT = Path.cwd()  # scripts/gpu/suite changes into the checkout
MODELS = PROJECT / "scripts" / "gpu" / "models"

GPU_FLAGS = (
    "--load-format dummy --dtype bfloat16 --attention-backend flashinfer --moe-runner-backend triton"
    " --grammar-backend none --skip-tokenizer-init --disable-prefill-cuda-graph --cuda-graph-max-bs-decode 64"
    " --disable-flashinfer-autotune --mm-feature-transport cpu --random-seed 1 --stream-interval 1"
    " --skip-server-warmup"
)
CPU_FLAGS = (
    "--dtype float32 --attention-backend torch_native --grammar-backend none --skip-tokenizer-init"
    " --max-total-tokens 24000 --random-seed 1 --stream-interval 1 --skip-server-warmup --sleep-on-idle"
)


@dataclass(frozen=True, slots=True)
class Arm:
    """One server: SGLang's scheduling with some flags, or ours with an execution strategy."""

    name: str
    flags: tuple[str, ...] = ()
    is_layered: bool = False
    execution: str = "fused"
    is_optional: bool = False  # a server that does not start is noted, and the stage goes on


PDMUX_FLAGS = ("--enable-pdmux", "--chunked-prefill-size", "-1", "--disable-overlap-schedule")
PD_MULTIPLEXING = Arm("pdmux", PDMUX_FLAGS, is_optional=True)


@dataclass(frozen=True, slots=True)
class Profile:
    """Sizes are in tokens, rows in requests, times in seconds."""

    name: str
    device: str
    common_flags: tuple[str, ...]
    model_path: Path | None  # None: the tiny model, made on the spot
    vocab_size: int
    decode_rows: tuple[int, ...]
    serve_rows: tuple[int, ...]
    prompt_tokens: tuple[int, ...]
    serve_prompt_tokens: int
    num_groups: tuple[int, ...]
    chunk_tokens: tuple[int, ...]
    whole_tokens: int  # the chunk size that lets each prompt through whole
    context_tokens: int  # prompt of each running stream
    max_new_tokens: int  # of each running stream: none ends before it is stopped
    executions: tuple[str, ...]
    backends: tuple[str, ...]
    page_sizes: tuple[int, ...]
    num_repetitions: int
    start_s: float  # what a server's start may take
    coverage: str = "uniform"  # of `cost.coverage`: what the routers come close to


GPU = Profile(
    name="gpu",
    device="cuda",
    common_flags=tuple(GPU_FLAGS.split()),
    model_path=MODELS / "qwen3-30b-a3b",
    vocab_size=151_000,
    decode_rows=(16, 8, 64, 32, 0),
    serve_rows=(16, 8, 64),
    prompt_tokens=(8192, 2048),
    serve_prompt_tokens=8192,
    num_groups=(4, 16, 8, 2, 1),
    chunk_tokens=(2048, 512, 1024, 4096),
    whole_tokens=8192,
    context_tokens=2048,
    max_new_tokens=20_000,
    executions=("fused", "sequential", "concurrent"),
    backends=("triton", "flashinfer", "fa3"),
    page_sizes=(1, 16, 64),
    num_repetitions=3,
    start_s=240,
)
GPT_OSS = replace(
    GPU,
    name="gpt-oss",
    common_flags=tuple(GPU_FLAGS.replace("flashinfer --moe", "triton --moe").split()),
    model_path=MODELS / "gpt-oss-20b",
    decode_rows=(16, 64),
    prompt_tokens=(8192,),
    num_groups=(12, 4, 24),
    chunk_tokens=(2048, 512),
    executions=("fused",),
    backends=("triton",),
)
DENSE = replace(
    GPU,
    name="dense",
    model_path=MODELS / "qwen3-8b",
    decode_rows=(16, 64),
    prompt_tokens=(8192,),
    num_groups=(16, 4, 36),
    executions=("fused",),
)
LONG = replace(
    GPU,
    name="long",
    common_flags=(*GPU.common_flags, "--max-prefill-tokens", "32768"),
    decode_rows=(16, 64),
    prompt_tokens=(32_768,),
    serve_prompt_tokens=32_768,
    num_groups=(16, 48, 4),
    chunk_tokens=(2048, 512, 8192),
    whole_tokens=32_768,
)
CALIBRATED = replace(GPU, name="calibrated", model_path=MODELS / "qwen3-30b-a3b-routed", coverage="paper")
CPU = Profile(
    name="cpu",
    device="cpu",
    common_flags=tuple(CPU_FLAGS.split()),
    model_path=None,
    vocab_size=1024,
    decode_rows=(2, 0),
    serve_rows=(2,),
    prompt_tokens=(512,),
    serve_prompt_tokens=512,
    num_groups=(4, 1),
    chunk_tokens=(128,),
    whole_tokens=2048,
    context_tokens=64,
    max_new_tokens=4000,
    executions=("fused", "sequential"),
    backends=("torch_native",),
    page_sizes=(1,),
    num_repetitions=1,
    start_s=120,
)
CPU_CALIBRATED = replace(
    CPU,
    name="cpu-calibrated",
    common_flags=(*CPU.common_flags, "--load-format", "dummy"),
    model_path=MODELS / "tiny-routed",
    vocab_size=8192,
    coverage="paper",
)
PROFILES: Mapping[str, Profile] = MappingProxyType(
    {each.name: each for each in (GPU, CALIBRATED, GPT_OSS, DENSE, LONG, CPU, CPU_CALIBRATED)}
)


def stock_arms(profile: Profile) -> list[Arm]:
    """SGLang's own: prompts whole and first, then mixed chunks."""
    mixed = [
        Arm(f"mixed{size}", ("--chunked-prefill-size", str(size), "--enable-mixed-chunk"))
        for size in profile.chunk_tokens
    ]
    return [Arm("whole", ("--chunked-prefill-size", str(profile.whole_tokens))), *mixed]


def layered_arm(profile: Profile, execution: str) -> Arm:
    """Ours with one strategy; the number of groups changes on the running server."""
    flags = ("--prefill-mode", "layered", "--chunked-prefill-size", str(profile.whole_tokens))
    return Arm(f"layered-{execution}", (*flags, "--layered-execution", execution), True, execution)


def step_arms(profile: Profile) -> list[Arm]:
    """In the order of what they tell: fused and the two chunk sizes that matter most come first."""
    layered = [layered_arm(profile, execution) for execution in profile.executions]
    stock = stock_arms(profile)
    other = [PD_MULTIPLEXING] if profile.device == "cuda" else []
    return [layered[0], *stock[:3], *layered[1:], *stock[3:], *other]


def serve_arms(profile: Profile) -> list[Arm]:
    """SGLang as it comes, two chunk sizes, and ours as it comes."""
    wanted = (profile.chunk_tokens + profile.chunk_tokens)[:2]
    mixed = [arm for arm in stock_arms(profile) if arm.name in {f"mixed{size}" for size in wanted}]
    flags = ("--prefill-mode", "layered", "--chunked-prefill-size", str(profile.whole_tokens))
    return [Arm("default"), *mixed, Arm("layered", flags, True)]


def profile_arms(profile: Profile) -> list[Arm]:
    """Ours, and the smallest chunks, which read the experts most often."""
    smallest = f"mixed{min(profile.chunk_tokens)}"
    return [
        layered_arm(profile, profile.executions[0]),
        *(arm for arm in stock_arms(profile) if arm.name == smallest),
    ]
