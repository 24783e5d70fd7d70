"""Real servers, one per configuration, shared by all tests of the session."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from servers import LAYERED, Served, serve
from sglang_layered.patching import locate

torch.set_num_threads(1)  # models compute here too: threads that wait for a core take it from the servers


@pytest.fixture(scope="session")
def pristine_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with SGLang as released, and kernels/cpu under the name `sgl_kernel` beside it."""
    site = tmp_path_factory.mktemp("pristine")
    package = locate().package
    shutil.copytree(package, site / "sglang", ignore=shutil.ignore_patterns("multimodal_gen"))
    for info in package.parent.glob("sglang-*.dist-info"):
        shutil.copytree(info, site / info.name)
    subprocess.run(
        [sys.executable, "-m", "sglang_layered", "patch", "revert", "--site", str(site)], check=True
    )
    subprocess.run([sys.executable, "-m", "compileall", "-q", str(site / "sglang" / "srt")], check=True)
    assert "layered" not in (site / "sglang" / "__init__.py").read_text()
    kernels = site / "sgl_kernel"
    kernels.mkdir()
    (kernels / "__init__.py").write_text(
        "from sglang_layered_kernels.cpu import *\nfrom sglang_layered_kernels.cpu import __getattr__\n"
    )
    return site


@pytest.fixture(scope="session")
def layered_moe(tiny_qwen3_moe: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("layered-moe")
    steps = folder / "steps.jsonl"
    with serve(folder, tiny_qwen3_moe, *LAYERED, "--layered-listeners", f"jsonl={steps}") as server:
        yield Served(server, steps)


@pytest.fixture(scope="session")
def stock_moe(
    tiny_qwen3_moe: Path, tmp_path_factory: pytest.TempPathFactory, pristine_site: Path
) -> Iterator[Served]:
    """SGLang as released."""
    folder = tmp_path_factory.mktemp("stock-moe")
    yield from traced(folder, tiny_qwen3_moe, {"PYTHONPATH": str(pristine_site)})


@pytest.fixture(scope="session")
def off_moe(tiny_qwen3_moe: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Patched SGLang with layered mode off."""
    folder = tmp_path_factory.mktemp("off-moe")
    yield from traced(folder, tiny_qwen3_moe, {})


def traced(folder: Path, model: Path, env: dict[str, str]) -> Iterator[Served]:
    steps = folder / "steps.jsonl"
    script = Path(__file__).parent / "traced_server.py"
    server = serve(folder, model, env={**env, "STEP_TRACE": str(steps)})
    start = server.command.index("-m")
    server.command[start : start + 2] = [str(script)]
    with server:
        yield Served(server, steps)


@pytest.fixture(scope="session")
def stock_llama(
    tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory, pristine_site: Path
) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("stock-llama")
    with serve(folder, tiny_llama, env={"PYTHONPATH": str(pristine_site)}) as server:
        yield Served(server, folder / "none")


@pytest.fixture(scope="session")
def layered_llama(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Started through the other door, `sglang serve`, and by nothing but SGLang's own means."""
    folder = tmp_path_factory.mktemp("layered-llama")
    steps = folder / "steps.jsonl"
    flags = (*LAYERED, "--layered-listeners", f"jsonl={steps}")
    server = serve(folder, tiny_llama, *flags, is_forked=False)
    start = server.command.index("-m")
    server.command[start - 1 : start + 2] = [str(Path(sys.executable).with_name("sglang")), "serve"]
    with server:
        yield Served(server, steps)
