"""The way in and out that README names, with the built wheel; and what stays where only the package goes."""

from __future__ import annotations

import base64
import csv
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from tiny_models import EXACT

from sglang_layered.patching import verify_patched
from sglang_layered_lab.serving import ServerProcess
from standalone_kernels import write_standalone_kernels

pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(sys.prefix == sys.base_prefix, reason="the interpreter is in no virtual environment"),
]

REPO = Path(__file__).resolve().parents[2]
SOURCES = ("python", "kernels", "patches", "docker/monitoring", "pyproject.toml", "README.md", "LICENSE")
COMMIT = "1a2b3c4d5"
VERSION = f"0.1.0.dev7+g{COMMIT}"
WARNING = "SGLang runs as released: it is patched for sglang-layered, which cannot be used"
FLAGS = (*EXACT, "--max-total-tokens", "4000")
PROMPT = list(range(5, 205))


@dataclass(frozen=True)
class Environment:
    """A copy of the environment that the tests run in, and a wheel of this package."""

    folder: Path
    wheel: Path

    @property
    def python(self) -> str:
        return str(self.folder / "bin" / "python")

    def run(self, program: str, *args: str) -> str:
        """A program of the environment, with what it prints; no code of the tests' own environment."""
        command = [str(self.folder / "bin" / program), *args]
        env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=self.folder, env=env)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def install(self) -> None:
        """Of what this package asks for everything is there, or pip fails."""
        self.run("python", "-m", "pip", "install", "--quiet", "--no-index", str(self.wheel))

    def uninstall(self) -> None:
        self.run("python", "-m", "pip", "uninstall", "--quiet", "--yes", "sglang-layered")

    def ours(self) -> list[str]:
        """What is left of this package and its command."""
        places = (*self.folder.glob("lib/python*/site-packages/*"), *self.folder.glob("bin/*"))
        return [path.name for path in places if re.match(r"sglang.layered", path.name)]

    def changed_files(self) -> list[str]:
        """Files of SGLang that are not what its installer recorded; an oracle that knows no patches."""
        (record,) = self.folder.glob("lib/python*/site-packages/sglang-*.dist-info/RECORD")
        site = record.parent.parent
        with record.open(newline="") as rows:
            recorded = {path: digest for path, digest, _ in csv.reader(rows) if path.startswith("sglang/")}
        return [path for path, digest in recorded.items() if digest and sha256_of(site / path) != digest]


def sha256_of(path: Path) -> str:
    """As a RECORD writes it."""
    digest = hashlib.sha256(path.read_bytes()).digest()
    return "sha256=" + base64.urlsafe_b64encode(digest).decode().rstrip("=")


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[Environment]:
    """Of hard links, beside the original one: neither pip nor the patch tool writes into an existing file."""
    source = tmp_path / "source"
    for name in SOURCES:
        copy = shutil.copytree if (REPO / name).is_dir() else shutil.copy
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        copy(REPO / name, source / name)
    env = {**os.environ, "SETUPTOOLS_SCM_PRETEND_VERSION_FOR_SGLANG_LAYERED": VERSION}  # the copy has no git
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path), str(source)]
    done = subprocess.run(build, capture_output=True, text=True, env=env, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    folder = REPO / "out" / "uninstall-environment"  # on the file system of the original
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(exist_ok=True)
    try:
        # Other tests may compile a module meanwhile: under another name, which is gone when it is done.
        half_written = shutil.ignore_patterns("*.pyc.*")
        shutil.copytree(sys.prefix, folder, symlinks=True, copy_function=os.link, ignore=half_written)
        yield Environment(folder, wheel)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def answer_of(server: ServerProcess) -> list[int]:
    body = {
        "input_ids": PROMPT,
        "sampling_params": {"temperature": 0, "max_new_tokens": 8, "ignore_eos": True},
    }
    reply = httpx.post(f"{server.base_url}/generate", json=body, timeout=300, trust_env=False)
    reply.raise_for_status()
    tokens = reply.json()["output_ids"]
    assert len(tokens) == 8
    return list(tokens)


def commands_of_the_readme() -> list[list[str]]:
    """README's block that installs into an environment, and the one that leaves it."""
    text = (REPO / "README.md").read_text()
    section = text.split("**Into your own SGLang environment.**")[1].split("**With the set-up script.**")[0]
    return [shlex.split(line, comments=True) for line in re.findall(r"^ {4}(.+)$", section, re.MULTILINE)]


def test_apply_serve_uninstall_serve_reinstall_revert(
    environment: Environment, tiny_qwen3_moe: Path, tmp_path: Path
) -> None:
    write_standalone_kernels(tmp_path / "site")
    install, apply, doctor, revert, uninstall = commands_of_the_readme()
    environment.run("python", "-m", "sglang_layered", "patch", "revert")
    environment.uninstall()
    assert (environment.changed_files(), environment.ours()) == ([], [])
    assert install == ["pip", "install", "."]
    environment.install()
    environment.run(*apply)
    assert "applied and verified by hash" in environment.run(*doctor)
    assert environment.run("sglang-layered", "--version").split()[-1] == VERSION
    # the environment lies in a checkout that its files are no part of
    told = "from sglang_layered_lab.provenance import current_commit; print(current_commit())"
    assert environment.run("python", "-c", told).strip() == COMMIT
    environment.run("sglang-layered", "monitoring", "write", str(tmp_path / "monitoring"))
    assert (tmp_path / "monitoring" / "grafana" / "dashboards" / "layered.json").stat().st_size > 10_000
    patched = environment.changed_files()
    assert "sglang/__init__.py" in patched

    flags = [*FLAGS, "--skip-tokenizer-init"]
    layered = [*flags, "--prefill-mode", "layered"]
    log = tmp_path / "layered.log"
    with ServerProcess(tiny_qwen3_moe, layered, log_path=log, python=environment.python) as server:
        tokens = answer_of(server)
    assert WARNING not in log.read_text()

    environment.uninstall()
    assert environment.changed_files() == patched
    log, env = tmp_path / "stock.log", {"PYTHONPATH": str(tmp_path / "site")}
    with ServerProcess(tiny_qwen3_moe, flags, log_path=log, python=environment.python, env=env) as server:
        assert answer_of(server) == tokens
    assert log.read_text().count(WARNING) == 1

    environment.install()
    assert "reverted" in environment.run(*revert)
    assert uninstall == ["pip", "uninstall", "sglang-layered"]
    environment.uninstall()
    assert (environment.changed_files(), environment.ours()) == ([], [])
    verify_patched()  # of the environment that the tests run in, whose files the copy shared
