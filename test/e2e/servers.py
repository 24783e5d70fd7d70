"""One real server of the tests: its flags, and what is known of it while it runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sglang_layered_lab.serving import ServerProcess

COMMON = ("--dtype", "float32", "--max-total-tokens", "40000", "--random-seed", "1", "--skip-server-warmup")
# An idle SGLang scheduler polls at full speed unless told to sleep; up to five servers share two cores here.
COMMON += ("--sleep-on-idle",)
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


def serve(
    folder: Path, model: Path, *flags: str, env: dict[str, str] | None = None, **kwargs
) -> ServerProcess:
    folder.mkdir(parents=True, exist_ok=True)
    return ServerProcess(
        model, [*COMMON, *flags], log_path=folder / "server.log", env=env, grace_s=3, **kwargs
    )
