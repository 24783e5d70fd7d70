"""The two servers of a soak: the layered one under little memory, and SGLang as released for the replay."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
from tiny_models import EXACT, tiny_model

from sglang_layered.patching import locate
from sglang_layered.upstream.cpu_kernels import cuda_driver_available
from sglang_layered_lab.serving import ServerProcess
from soak_plan import SoakSpec

GROUP_TOKENS = 64
LAYERED = ("--prefill-mode", "layered", "--layered-group-tokens", str(GROUP_TOKENS))
LAYERED += ("--layered-check-invariants", "strict", "--chunked-prefill-size", "512")
# SGLang reserves room for what running requests may still write, and more after each retraction. Here it
# reserves almost none: it admits too much and has to retract, again and again.
OVERCOMMIT = ("--schedule-conservativeness", "0.01")
OVERCOMMIT_ENV = {"SGLANG_CLIP_MAX_NEW_TOKENS_ESTIMATION": "1", "SGLANG_NEW_TOKEN_RATIO_DECAY_STEPS": "1"}
EVENTS = "events.jsonl"
READY_S = 900.0  # a soak runs beside other work
KERNELS = "from sglang_layered_kernels.cpu import *\nfrom sglang_layered_kernels.cpu import __getattr__\n"


def layered_flags(spec: SoakSpec) -> list[str]:
    """Flags of a layered server whose request limit and KV pool are too small for its clients."""
    flags = [*EXACT, *LAYERED, *OVERCOMMIT, "--max-total-tokens", str(spec.pool_tokens)]
    flags += ["--max-running-requests", str(spec.max_running_requests)]
    return [*flags, "--enable-streaming-session"] if spec.num_talkers else flags


def layered_server(spec: SoakSpec, folder: Path) -> ServerProcess:
    """Such a server, with its log and its events in `folder`."""
    (folder / EVENTS).unlink(missing_ok=True)
    flags = layered_flags(spec)
    flags += ["--layered-listeners", f"jsonl={folder / EVENTS}"]
    return _server(flags, folder / "layered.log", OVERCOMMIT_ENV)


def released_server(site: Path, folder: Path) -> ServerProcess:
    """SGLang as released, with room for everything."""
    flags = [*EXACT, "--max-total-tokens", "20000"]
    path = os.pathsep.join(filter(None, (str(site), os.environ.get("PYTHONPATH"))))
    return _server(flags, folder / "released.log", {"PYTHONPATH": path})


def _server(flags: list[str], log: Path, env: dict[str, str]) -> ServerProcess:
    return ServerProcess(
        tiny_model("qwen3_moe"), flags, log_path=log, env=env, ready_timeout_s=READY_S, grace_s=20
    )


def release_site(folder: Path) -> Path:
    """SGLang as released, and kernels/cpu as `sgl_kernel` beside it, kept in `folder` for the next soak."""
    package = locate().package
    [info] = package.parent.glob("sglang-[0-9]*.dist-info")
    made = folder / f"released-{info.stem}"
    if made.exists():
        return made
    with TemporaryDirectory(dir=folder) as half_made:
        site = Path(half_made) / "site"
        shutil.copytree(package, site / "sglang", ignore=shutil.ignore_patterns("multimodal_gen"))
        shutil.copytree(info, site / info.name)
        revert = [sys.executable, "-m", "sglang_layered", "patch", "revert", "--site", str(site)]
        subprocess.run(revert, check=True, stdout=subprocess.DEVNULL)
        subprocess.run([sys.executable, "-m", "compileall", "-q", str(site / "sglang" / "srt")], check=True)
        if not cuda_driver_available():
            (site / "sgl_kernel").mkdir()
            (site / "sgl_kernel" / "__init__.py").write_text(KERNELS)
        site.rename(made)
    return made


def scheduler_process(server: ServerProcess) -> psutil.Process:
    """The server's scheduler, by the title that SGLang gives it."""
    for child in psutil.Process(server.pid).children(recursive=True):
        if child.cmdline()[:1] and child.cmdline()[0].startswith("sglang::scheduler"):
            return child
    raise LookupError(f"server {server.pid} has no scheduler process")
