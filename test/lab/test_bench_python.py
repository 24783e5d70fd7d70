"""`server.python`: arms of one sweep may be served by other environments, as another release of SGLang."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from sglang_layered.errors import LabError
from sglang_layered_lab.bench.run import interpreter, made_with, process_of
from sglang_layered_lab.bench.server_pool import key_of
from sglang_layered_lab.bench.spec import BenchSpec, spec_from
from sglang_layered_lab.bench.spec_errors import SpecError
from sglang_layered_lab.provenance import installed_versions

LENGTHS = {name: {"distribution": "fixed", "tokens": 4} for name in ("prompt", "output")}


def spec_of(folder: Path, python: str | None) -> BenchSpec:
    values = {
        "run": {"name": "a"},
        "server": {"model": "m"} | ({} if python is None else {"python": python}),
        "load": {"arrivals": "closed", "num_clients": 1, "num_requests": 1},
        "workload": {"lengths": LENGTHS},
    }
    return spec_from(values, folder)


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """Another environment: it has one package, in a version of its own."""
    info = tmp_path / "other" / "site" / "sglang-9.9.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sglang\nVersion: 9.9\n")
    python = tmp_path / "other" / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{info.parent}" exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return python


def test_a_named_interpreter_serves_and_says_what_it_has(tmp_path: Path, other: Path) -> None:
    spec, own = spec_of(tmp_path, "other/python"), spec_of(tmp_path, None)
    process = process_of(spec, tmp_path, tmp_path / "log")
    assert process.command[0] == str(other)
    assert process_of(own, tmp_path, tmp_path / "log").command[0] == sys.executable
    assert made_with(spec)["versions"]["sglang"] == "9.9"
    assert made_with(own)["versions"] == installed_versions("aiohttp", "numpy", "scipy")
    assert key_of(spec) != key_of(own)
    assert spec.to_json()["server"]["python"] == "other/python"


def test_an_interpreter_that_is_none_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"server\.python: 'nowhere/python' cannot be run; give the python"):
        made_with(spec_of(tmp_path, "nowhere/python"))
    assert interpreter(spec_of(tmp_path, None)) == sys.executable
    with pytest.raises(LabError, match="/bin/true does not run"):
        installed_versions(python="/bin/true")


def test_a_server_at_a_url_has_its_own() -> None:
    values = {
        "run": {"name": "a"},
        "server": {"url": "http://h:1", "python": "python"},
        "load": {"arrivals": "closed", "num_clients": 1, "num_requests": 1},
        "workload": {"vocab": [1, 9], "lengths": LENGTHS},
    }
    with pytest.raises(SpecError, match=r"server\.python: a server at a url has its own; remove it"):
        spec_from(values)
