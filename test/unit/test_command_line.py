"""`sglang-layered` itself: its help, its exit statuses, what shells complete."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from sglang_layered.cli import doctor, groups
from sglang_layered.cli.main import cli

REPO = Path(__file__).resolve().parents[2]
DOCUMENT = (REPO / "docs" / "commands.md").read_text(encoding="utf-8")
tomllib = pytest.importorskip("tomllib", reason="from Python 3.11 on")
PROGRAM = [sys.executable, "-m", "sglang_layered"]


def run(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **environment}
    return subprocess.run([*PROGRAM, *args], capture_output=True, text=True, env=env, timeout=120)


def all_commands() -> Iterator[tuple[str, click.Command]]:
    for name, (place, _) in groups.commands().items():
        module, attribute = place.split(":")
        command = getattr(import_module(module), attribute)
        yield name, command
        if isinstance(command, click.Group):
            yield from ((f"{name} {sub}", each) for sub, each in command.commands.items())


def help_of(*args: str) -> str:
    done = CliRunner().invoke(cli, [*args, "--help"], prog_name="sglang-layered", terminal_width=80)
    assert done.exit_code == 0, done.output
    return done.output


def test_every_command_is_one_line_under_a_heading_and_the_document_has_them() -> None:
    said = help_of()
    for heading, table in groups.headings().items():
        section = said.split(f"\n{heading}:\n")[1].split("\n\n")[0].rstrip("\n").split("\n")
        assert [line.split()[0] for line in section] == list(table)
        assert [line.split(maxsplit=1)[1] for line in section] == [summary for _, summary in table.values()]
    listed = said.split("show this message and exit.\n".capitalize())[1].strip("\n")
    assert "".join(f"    {line}".rstrip() + "\n" for line in listed.split("\n")) in DOCUMENT


def test_no_summary_of_a_group_is_cut() -> None:
    assert "at every point of the grid." in " ".join(help_of("bench").split())
    for name, command in all_commands():
        assert command.help and command.help.partition("\n\n")[0].strip().endswith("."), name
        assert not isinstance(command, click.Group) or "..." not in help_of(name).partition("ommands:")[2]


def test_exit_statuses_are_those_of_the_document(tmp_path: Path) -> None:
    assert all(f"\n| {status} |" in DOCUMENT for status in (0, 1, 2, 130))
    assert run("--version").returncode == 0
    failed = run("patch", "verify", "--site", str(tmp_path))
    assert (failed.returncode, failed.stderr.count("\n")) == (1, 1)
    for wrong in (("nothing",), ("patch", "verify", "--nothing"), ("doctor", "too", "many")):
        done = run(*wrong)
        assert done.returncode == 2 and "Usage: sglang-layered" in done.stderr


def test_ctrl_c_is_one_line_and_130(tmp_path: Path) -> None:
    script = "import os, signal, sglang_layered.cli.main as main\n"
    script += (
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background job ignores it
    )
    script += "main.cli.callback = lambda: os.kill(os.getpid(), signal.SIGINT)\nmain.main()\n"
    command = [sys.executable, "-c", script, "patch", "status"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr.strip()) == (128 + signal.SIGINT, "sglang-layered: stopped")


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """The command as shells find it."""
    path = tmp_path / "sglang-layered"
    path.write_text(f'#!/bin/sh\nexec {" ".join(PROGRAM)} "$@"\n')
    path.chmod(0o755)
    return path


def completed(program: Path, line: str) -> list[str]:
    """What bash offers at the end of `line`, by the script that the document says to load."""
    [load] = [each for each in DOCUMENT.splitlines() if "bash_source" in each]
    *before, last = line.split(" ")
    script = f"""
        {load}
        COMP_WORDS=({" ".join(before)} "{last}") COMP_CWORD={len(before)}
        _sglang_layered_completion sglang-layered
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    env = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=env, timeout=120)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout.split()


def test_bash_completes_commands_subcommands_and_options(program: Path) -> None:
    assert completed(program, "sglang-layered ma") == ["make-model", "make-draft"]
    assert completed(program, "sglang-layered patch re") == ["revert"]
    assert completed(program, "sglang-layered doctor --mod") == ["--model-path"]


IMPORTED = """
import sys
try:
    from sglang_layered.cli.main import main; main()
except SystemExit:
    print([name for name in sys.modules if name in ('rich', 'torch', 'sglang')], file=sys.stderr)
"""


def test_names_are_completed_without_an_import_of_a_command() -> None:
    env = {**os.environ, "_SGLANG_LAYERED_COMPLETE": "zsh_complete"}
    env |= {"COMP_WORDS": "sglang-layered ", "COMP_CWORD": "1"}
    command = [sys.executable, "-c", IMPORTED]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=120)
    assert done.stderr == "[]\n"
    assert [line for line in done.stdout.splitlines() if line in groups.commands()] == list(groups.commands())


def test_a_missing_package_is_named_with_the_version_that_is_asked_for(monkeypatch) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    monkeypatch.setattr(doctor, "version", missing)
    monkeypatch.setattr(doctor, "requires", lambda name: project["dependencies"])
    remedies = {found.what: found.remedy for found in doctor.machine() if found.state == "missing"}
    assert set(remedies) >= set(doctor.PACKAGES)
    assert (remedies["sglang"] or "").startswith("pip install 'sglang==0.5.17'; ")
    assert (remedies["sglang-kernel"] or "").startswith("pip install 'sglang-kernel>=")


def test_the_version_is_that_of_the_installation(monkeypatch) -> None:
    import importlib.metadata

    import sglang_layered

    assert sglang_layered.__version__ == importlib.metadata.version("sglang-layered")
    assert run("--version").stdout == f"sglang-layered, version {sglang_layered.__version__}\n"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = sglang_layered.nothing


def test_doctor_names_the_release_that_it_found_and_those_that_are_known() -> None:
    found = {each.what: each for each in doctor.release()}
    words = found["release"].state.split()
    assert words[0] == "SGLang" and words[1] in ("0.5.17", "0.5.23")
    assert words[-3:] == ["known:", "0.5.17,", "0.5.23"]
    assert found["patch set"].state == f"of {words[1]}: applied and verified by hash"
