"""Flags that the documents name are those of the server, the router, or the container engine."""

from __future__ import annotations

import re
import shlex

import pytest

from docker_files import DOCKER, REPO, parse_container_args, router_parser, server_parser

RUN_LINE = re.compile(r"^ {4}docker run .*? sglang-layered:\S+ (-.*|router .*)$", re.MULTILINE)
OF_OTHERS = {
    "--build-arg",
    "--config",  # Prometheus
    "--gpus",
    "--init",
    "--network",
    "--profile",
    "--rm",
    "--shm-size",
    "--arch",
    "--out",
    "--target",
}  # docker, docker compose, make-model, monitoring write


@pytest.mark.parametrize("path", ["docker/README.md", "docs/scale.md"])
def test_named_flags_exist(path: str) -> None:
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", (REPO / path).read_text()))
    known = {
        flag
        for parser in (server_parser(), router_parser())
        for action in parser._actions
        for flag in action.option_strings
    }
    assert len(named) > 8
    assert named - known - OF_OTHERS == set()


def test_run_lines_are_parsed_by_what_they_start() -> None:
    lines = RUN_LINE.findall((DOCKER / "README.md").read_text().replace("\\\n", " "))
    assert len(lines) == 3
    for line in lines:
        assert parse_container_args(shlex.split(line))
