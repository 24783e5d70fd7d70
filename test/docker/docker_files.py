"""What the tests of docker/ share: its files parsed, and the parsers of the programs in its image."""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from dockerfile_parse import DockerfileParser

REPO = Path(__file__).resolve().parents[2]
DOCKER = REPO / "docker"
KUBERNETES = DOCKER / "kubernetes"
KUSTOMIZATIONS = {
    path.parent: yaml.safe_load(path.read_text()) for path in DOCKER.rglob("kustomization.yaml")
}
IMAGE_ROOT = "/opt/sglang-layered"
DEFAULTED = re.compile(r"\$\{([A-Z0-9_]+):-([^}]*)\}")


def instructions(name: str) -> list[str]:
    """Values of a Dockerfile instruction, in order."""
    parser = DockerfileParser(path=str(DOCKER / "Dockerfile"))
    return [each["value"] for each in parser.structure if each["instruction"] == name]


def compose() -> dict[str, Any]:
    """compose.yaml with no variable set."""
    loaded: dict[str, Any] = _with_defaults(yaml.safe_load((DOCKER / "compose.yaml").read_text()))
    return loaded


def _with_defaults(value: Any) -> Any:
    """As Compose does it: in parsed values. Every variable must have a default."""
    match value:
        case dict():
            return {key: _with_defaults(each) for key, each in value.items()}
        case list():
            return [_with_defaults(each) for each in value]
        case str():
            filled = DEFAULTED.sub(lambda match: match[2], value)
            assert "${" not in filled
            return filled
        case _:
            return value


def documents() -> list[dict[str, Any]]:
    """Every Kubernetes object that is written out: no patch, and nothing that kustomize makes."""
    files = (
        folder / name
        for folder, made in KUSTOMIZATIONS.items()
        for name in made.get("resources", [])
        if (folder / name).is_file()
    )
    return [each for path in files for each in yaml.safe_load_all(path.read_text())]


@cache
def rendered(folder: Path) -> list[dict[str, Any]]:
    """What `kubectl apply -k` would send; skips where neither kubectl nor kustomize is."""
    for program, *command in (("kubectl", "kustomize"), ("kustomize", "build")):
        if shutil.which(program):
            done = subprocess.run([program, *command, folder], capture_output=True, text=True, timeout=120)
            assert done.returncode == 0, done.stderr
            return list(yaml.safe_load_all(done.stdout))
    pytest.skip("neither kubectl nor kustomize is on PATH")


@cache
def server_parser() -> argparse.ArgumentParser:
    from sglang.srt.server_args import ServerArgs

    parser = argparse.ArgumentParser(exit_on_error=False)
    ServerArgs.add_cli_args(parser)
    return parser


@cache
def router_parser() -> argparse.ArgumentParser:
    from sglang_router.router_args import RouterArgs

    parser = argparse.ArgumentParser(exit_on_error=False)
    RouterArgs.add_cli_args(parser, use_router_prefix=False, exclude_host_port=False)
    return parser


def parse_container_args(args: list[str]) -> argparse.Namespace:
    """The container's arguments, as the program that entrypoint.sh starts with them would read them."""
    if args[0] == "router":
        return router_parser().parse_args(args[1:])
    return server_parser().parse_args(args)
