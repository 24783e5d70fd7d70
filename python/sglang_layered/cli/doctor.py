"""`sglang-layered doctor`: what is installed, patched and possible on this machine, and why not."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import click

from sglang_layered import __version__, patching
from sglang_layered.cpu_kernels import cuda_driver_available
from sglang_layered.energy import energy_findings
from sglang_layered.errors import ConfigError, LayeredPrefillError

PACKAGES = ("sglang", "torch", "flashinfer-python", "sglang-kernel", "nvidia-ml-py", "prometheus-client")


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report; a remedy is there exactly when something is missing."""

    what: str
    state: str
    remedy: str | None = None


def machine() -> Iterator[Finding]:
    """Python, cores, compiler, GPU driver."""
    yield Finding("sglang-layered", __version__)
    yield Finding("python", f"{platform.python_version()} ({sys.executable})")
    yield Finding("cores", str(os.cpu_count()))
    compiler = shutil.which("g++")
    remedy = None if compiler else "apt-get install g++ (SGLang compiles sampling penalties with it on CPU)"
    yield Finding("g++", compiler or "missing", remedy)
    if cuda_driver_available():
        yield Finding("device", "CUDA driver found: SGLang uses the GPU and the real sgl_kernel")
    else:
        yield Finding(
            "device", "no CUDA driver: SGLANG_USE_CPU_ENGINE=1 and --device cpu; kernels/cpu is sgl_kernel"
        )


def packages() -> Iterator[Finding]:
    """Installed versions of what the project builds on."""
    for name in PACKAGES:
        try:
            yield Finding(name, version(name))
        except PackageNotFoundError:
            yield Finding(name, "missing", "scripts/setup.sh installs the pinned versions")


def patches() -> Iterator[Finding]:
    """State of the patch set in this interpreter's SGLang."""
    try:
        patching.verify_patched()
        yield Finding("patch set", "applied and verified by hash")
    except LayeredPrefillError as error:
        yield Finding("patch set", str(error), "as said here; `sglang-layered patch status` shows each patch")


def energy() -> Iterator[Finding]:
    """Which energy can be measured here, and why not the others."""
    yield from (Finding(*parts) for parts in energy_findings())


REPORT: tuple[Callable[[], Iterator[Finding]], ...] = (machine, packages, patches, energy)


def _of_model(model_path: str) -> list[Finding]:
    """What is said of a model; what can only be a path is looked at before SGLang is imported."""
    remedy = "give a folder with a config.json, or a model's name on the hub"
    is_path = model_path.startswith(("/", ".", "~")) or model_path.count("/") > 1
    if is_path and not os.path.isdir(model_path):
        raise ConfigError(f"--model-path: there is no folder {model_path}; {remedy}")
    from sglang_layered.cli.model_probe import probe

    try:
        return list(probe(model_path))
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(f"--model-path: {model_path} cannot be read ({reason}); {remedy}") from error


@click.command()
@click.option("--model-path", help="Say of this model instead: layers, sizes, and whether it can be served.")
def doctor(model_path: str | None) -> None:
    """Say what is installed, patched and possible here; exit status 1 when something is missing."""
    if model_path is None:
        findings = [finding for part in REPORT for finding in part()]
    else:
        findings = _of_model(model_path)
    width = max(len(finding.what) for finding in findings)
    for finding in findings:
        mark = "ok" if finding.remedy is None else "!!"
        click.echo(f"{mark}  {finding.what:<{width}}  {finding.state}")
        if finding.remedy is not None:
            click.echo(f"    {'':<{width}}  remedy: {finding.remedy}")
    sys.exit(any(finding.remedy is not None for finding in findings))
