"""`sglang-layered doctor`: what is installed, patched and possible on this machine, and why not.

Of a model it says what layered prefill would do with it, read from its configuration; no weight is loaded.
"""

import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Any, NamedTuple

import click

from sglang_layered import __version__, patching
from sglang_layered.core.policy import TokenTargetPolicy
from sglang_layered.core.view import SchedulerView
from sglang_layered.energy.find import SOURCES_VARIABLE, find_sources
from sglang_layered.errors import ConfigError, LayeredPrefillError
from sglang_layered.patching import patch_set
from sglang_layered.upstream.cpu_kernels import cuda_driver_available

PACKAGES = ("sglang", "torch", "flashinfer-python", "sglang-kernel", "nvidia-ml-py", "prometheus-client")
PROMPT_TOKENS = 8192
DEVICES = {
    True: "CUDA driver found: SGLang uses the GPU and the real sgl_kernel",
    False: "no CUDA driver: SGLANG_USE_CPU_ENGINE=1 and --device cpu; kernels/cpu is sgl_kernel",
}


class Finding(NamedTuple):
    """One line of the report; a remedy is there exactly when something is missing."""

    what: str
    state: str
    remedy: str | None = None


def machine() -> Iterator[Finding]:
    """Python, compiler, GPU driver, packages, patches, and which energy can be measured here."""
    yield Finding("sglang-layered", __version__)
    yield Finding("python", f"{platform.python_version()} ({sys.executable})")
    yield Finding("cores", str(os.cpu_count()))
    compiler = shutil.which("g++")
    remedy = None if compiler else "apt-get install g++ (SGLang compiles sampling penalties with it on CPU)"
    yield Finding("g++", compiler or "missing", remedy)
    yield Finding("device", DEVICES[cuda_driver_available()])
    for name in PACKAGES:
        try:
            yield Finding(name, version(name))
        except PackageNotFoundError:
            yield Finding(name, "missing", _remedy(name))
    yield from release()
    yield from energy()


def release() -> Iterator[Finding]:
    """Which release of SGLang is there, and whether its patches are in."""
    try:
        site, known = patching.locate(), patch_set.supported_versions(patch_set.default_root())
        yield Finding("release", f"SGLang {site.version} in {site.package}; known: {', '.join(known)}")
        patching.verify(site)
        yield Finding("patch set", f"of {site.version}: applied and verified by hash")
    except LayeredPrefillError as error:
        yield Finding("patch set", str(error), "as said here; `sglang-layered patch status` shows each patch")


def _remedy(name: str) -> str:
    """How to install a package, in the version that this one's metadata asks for."""
    try:
        asked = requires("sglang-layered") or []
    except PackageNotFoundError:
        asked = []
    pattern = re.compile(rf"{re.escape(name)}(?![\w.-])[^;]*")
    found = next((match[0].strip() for each in asked if (match := pattern.match(each))), name)
    return f"pip install '{found}'; in a checkout scripts/setup.sh, which installs the pinned versions"


def energy() -> Iterator[Finding]:
    """Every energy source; a machine without any is fine, so the reasons stand in the state."""
    try:
        found = find_sources(None)
    except ConfigError as error:
        yield Finding("energy", str(error), f"correct it or unset {SOURCES_VARIABLE}")
        return
    yield from (Finding(f"energy {source.device}", source.source) for source in found.sources)
    yield from (Finding("energy", f"not measured: {reason}") for reason in found.missing)


def probe(model_path: str) -> Iterator[Finding]:
    """Layers, groups, experts, parked bytes, attention backend, supported or why not."""
    if not cuda_driver_available():
        os.environ.setdefault("SGLANG_USE_CPU_ENGINE", "1")
    from sglang.srt.configs.model_config import ModelConfig

    from sglang_layered.models.refused import model_refusal, parked_choice_bytes, parked_sizes

    config = ModelConfig(model_path)
    dtype = str(config.dtype).removeprefix("torch.")
    yield Finding("model", f"{', '.join(config.hf_config.architectures)}, {dtype}")
    plan = TokenTargetPolicy().plan(SchedulerView(config.num_hidden_layers, (PROMPT_TOKENS,)))
    sizes = " and ".join(
        str(size) for size in sorted({each.num_layers for each in plan.groups}, reverse=True)
    )
    yield Finding("layers", str(config.num_hidden_layers))
    yield Finding("groups", f"{plan.num_groups} of {sizes} layers for {PROMPT_TOKENS} prompt tokens")
    yield Finding("experts", _experts(config))
    parked = parked_sizes(config) * config.hidden_size * config.dtype.itemsize + parked_choice_bytes(config)
    yield Finding(
        "parked", f"{parked:,} B a prompt token, {parked * PROMPT_TOKENS / 1e6:.0f} MB of {PROMPT_TOKENS}"
    )
    try:
        backends = _attention_backends(model_path)
    except (AssertionError, ValueError, RuntimeError) as error:
        yield Finding("attention", f"SGLang: {' '.join(str(error).split())}", "a machine with another device")
        return
    yield Finding("attention", " and ".join(dict.fromkeys(backends)))
    reason = model_refusal(config, backends)
    if reason is None:
        yield Finding("layered mode", "supported")
    else:
        yield Finding("layered mode", f"refused: {reason}", "chunked mode serves what SGLang serves")


def _experts(config: Any) -> str:
    """How many, and their bytes where these are known; takes an SGLang ModelConfig."""
    from sglang_layered.models.layer_shapes import read_layer_shapes, served_layer_shapes

    known = read_layer_shapes(config.hf_text_config)
    if not known:
        return "unknown: transformers does not know this model"
    sparse = [layer for layer in known if layer.num_experts]
    if not sparse:
        return "none: a dense model (docs/models.md says what to expect)"
    per_token = sparse[0].num_experts_per_token
    counts = f"{sparse[0].num_experts} in each of {len(sparse)} layers, {per_token} a token"
    sizes = [layer.expert_bytes for layer in served_layer_shapes(config) if layer.num_experts]
    if not sizes:
        return (
            f"{counts}: bytes unknown, the weights are quantized and neither the configuration nor a"
            " safetensors file on this machine says how wide they are"
        )
    return f"{counts}: {sizes[0] / 1e9:.3f} GB a layer, {sum(sizes) / 1e9:.1f} GB in all"


def _attention_backends(model_path: str) -> tuple[str, ...]:
    """What layered mode gets on this machine; raises what SGLang raises when it makes no choice."""
    from sglang.srt.server_args import ServerArgs

    from sglang_layered.upstream.releases import arguments

    given = {} if cuda_driver_available() else {"device": "cpu"}
    if hasattr(ServerArgs, "prefill_mode"):  # it has been patched
        given["prefill_mode"] = "layered"
    return arguments.attention_backends_of(ServerArgs(model_path=model_path, **given))


def _of_model(model_path: str) -> list[Finding]:
    """What is said of a model; what can only be a path is looked at before SGLang is imported."""
    remedy = "give a folder with a config.json, or a model's name on the hub"
    is_path = model_path.startswith(("/", ".", "~")) or model_path.count("/") > 1
    if is_path and not os.path.isdir(model_path):
        raise ConfigError(f"--model-path: there is no folder {model_path}; {remedy}")
    try:
        return list(probe(model_path))
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(f"--model-path: {model_path} cannot be read ({reason}); {remedy}") from error


@click.command()
@click.option("--model-path", help="Say of this model instead: layers, sizes, and whether it can be served.")
def doctor(model_path: str | None) -> None:
    """Say what is installed, patched and possible here; exit status 1 when something is missing."""
    findings = list(machine()) if model_path is None else _of_model(model_path)
    width = max(len(finding.what) for finding in findings)
    for what, state, remedy in findings:
        click.echo(f"{'!!' if remedy else 'ok'}  {what:<{width}}  {state}")
        if remedy:
            click.echo(f"    {'':<{width}}  remedy: {remedy}")
    sys.exit(any(finding.remedy for finding in findings))
