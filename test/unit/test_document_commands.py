"""Every command of the documents is run by a test, or is marked with why not; ours and the server's parse."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from markdown_it import MarkdownIt
from sglang.srt.server_args import ServerArgs

from sglang_layered.cli.main import cli

tomllib = pytest.importorskip("tomllib", reason="from Python 3.11 on")
REPO = Path(__file__).resolve().parents[2]
DOCUMENTS = ["README.md", "CONTRIBUTING.md", "docker/README.md", "kernels/README.md"]
DOCUMENTS += sorted(str(path.relative_to(REPO)) for path in (REPO / "docs").glob("*.md"))
PROGRAMS = "sglang-layered|sglang-router|sglang|python3?|pip|pytest|docker|curl|kubectl|helm|sh|git"
IS_COMMAND = re.compile(rf"((\./)?scripts/|([A-Z_]+=\S+ )*({PROGRAMS}) )")
ENTRIES = tomllib.loads(Path(__file__).with_name("document_commands.toml").read_text())["command"]
LAUNCHERS = ("-m sglang.launch_server ", "sglang serve ")


def commands() -> Iterator[tuple[str, str]]:
    """Documents and the commands of their code blocks, without comments, brackets and `.venv/bin`."""
    for document in DOCUMENTS:
        for token in MarkdownIt().parse((REPO / document).read_text(encoding="utf-8")):
            if token.type not in ("code_block", "fence") or token.info not in ("", "sh", "bash"):
                continue
            for line in token.content.replace("\\\n", " ").splitlines():
                command = " ".join(re.sub(r"\s#\s.*|\.venv/bin/|[\[\]]", "", line).split())
                if IS_COMMAND.match(command):
                    yield document, command


COMMANDS = list(commands())


def entry_of(command: str) -> int | None:
    return next((index for index, entry in enumerate(ENTRIES) if re.match(entry["is"], command)), None)


def test_every_command_is_tried_or_marked_with_why_not() -> None:
    assert len(COMMANDS) > 70
    assert [(document, command) for document, command in COMMANDS if entry_of(command) is None] == []


def test_every_mark_is_of_a_command_and_names_a_test_that_is_there() -> None:
    used = {entry_of(command) for _, command in COMMANDS}
    assert [entry["is"] for index, entry in enumerate(ENTRIES) if index not in used] == []
    for entry in ENTRIES:
        assert ("in" in entry) != ("why" in entry), entry
        assert (REPO / entry.get("in", "README.md")).is_file(), entry
        for path in re.findall(r"(?:test|docker|scripts|\.github)/[\w/.-]+\.\w+", entry.get("why", "")):
            assert (REPO / path).is_file(), entry


@pytest.mark.parametrize(
    "command", sorted({text for _, text in COMMANDS if text.startswith("sglang-layered ")})
)
def test_our_commands_have_these_options(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(click.Path, "convert", lambda self, value, param, ctx: Path(value))
    name, *rest = shlex.split(re.sub(r"\w+\|", "", command.replace("...", "")))
    current: Any = cli
    parent = None
    while isinstance(current, click.Group):
        parent = current.make_context(name, rest, parent=parent)
        name, current, rest = current.resolve_command(parent, [*parent._protected_args, *parent.args])
    assert current.make_context(name, rest, parent=parent).params is not None


@pytest.mark.parametrize(
    "command", sorted({text for _, text in COMMANDS if any(launcher in text for launcher in LAUNCHERS)})
)
def test_the_server_has_these_flags(command: str) -> None:
    parser = argparse.ArgumentParser(exit_on_error=False)
    ServerArgs.add_cli_args(parser)
    flags = re.split("|".join(LAUNCHERS), command, maxsplit=1)[1]
    _, unknown = parser.parse_known_args(shlex.split(flags))
    assert unknown == []


@pytest.mark.parametrize(
    "script", sorted({*re.findall(r"scripts/[\w/.-]+", " ".join(text for _, text in COMMANDS))})
)
def test_scripts_are_there(script: str) -> None:
    assert (REPO / script).is_file()
