"""One real server of the tests: its flags, and what is known of it while it runs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tiny_models import EXACT, ON_CUDA

from sglang_layered_lab.serving import ServerProcess

FORKED = Path(__file__).parent / "forked"
# An idle SGLang scheduler polls at full speed unless told to sleep; up to five servers share two cores here.
COMMON = (*EXACT, "--max-total-tokens", "40000", "--sleep-on-idle")
GRACE_S = 0.5  # an idle SGLang looks for SIGTERM every five seconds, and here nobody looks at how it ends
LAYERED = ("--prefill-mode", "layered", "--layered-group-tokens", "64")
LAYERED += ("--layered-check-invariants", "strict", "--chunked-prefill-size", "8192")


@dataclass(frozen=True)
class Served:
    """A running server and, where there is one, the file of its steps."""

    server: ServerProcess
    steps: Path | None = None

    @property
    def url(self) -> str:
        return self.server.base_url

    @property
    def log(self) -> str:
        return self.server.log_path.read_text()


def forked(env: Mapping[str, str] | None = None) -> dict[str, str]:
    """An environment whose server forks its processes, so that SGLang is imported once and not three times.

    A start then takes 26 s of CPU and not 67. SGLang spawns them for the sake of CUDA, so here it does, too.
    """
    own = dict(env or {})
    if ON_CUDA:
        return own
    paths = [str(FORKED), own.get("PYTHONPATH") or os.environ.get("PYTHONPATH", "")]
    return own | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


def serve(
    folder: Path,
    model: Path,
    *flags: str,
    env: Mapping[str, str] | None = None,
    is_forked: bool = True,
    **kwargs,
) -> ServerProcess:
    folder.mkdir(parents=True, exist_ok=True)
    env = forked(env) if is_forked else env
    return ServerProcess(
        model, [*COMMON, *flags], log_path=folder / "server.log", env=env, grace_s=GRACE_S, **kwargs
    )
