"""Commands of results/h200/TODO.md and docs/gpu-host.md: what they name is there and takes its options."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
from click import Command
from click.testing import CliRunner

from same_answers import CASES, WAYS
from sglang_layered.cli.main import cli
from sglang_layered.metrics.table import METRICS, PREFIX
from sglang_layered_lab.bench.limits import FLAG, SETTING
from sglang_layered_lab.bench.server_pool import key_of
from sglang_layered_lab.bench.sweep_spec import read_sweep
from sglang_layered_lab.gpu import profiling

REPO = Path(__file__).resolve().parents[2]
TODO, HOST = REPO / "results" / "h200" / "TODO.md", REPO / "docs" / "gpu-host.md"
CAMPAIGN = REPO / "scripts" / "gpu" / "campaign"
SHELL_WORDS = (".", "cd", "cp", "grep", "docker")
MADE_THERE = re.compile(r"[A-Z]|out/|/")  # places of the host begin so: FIT.json, T/cache, out/sweeps, /route
PYTEST_OPTIONS = {"-q", "-s", "--without-overlap"}
NAMES = [f"{case.name}-{execution}" for case in CASES for execution in WAYS]


def commands() -> Iterator[str]:
    """Words in backticks in the last column, and indented lines of the document; `&&` joins several."""
    for line in TODO.read_text().splitlines():
        if line.startswith("| ") and not line.startswith("| #"):
            for span in re.findall(r"`([^`]+)`", line.split(" | ")[2]):
                yield from span.split(" && ")
    for line in HOST.read_text().splitlines():
        if line.startswith("    "):
            yield from line.partition("#")[0].strip().split(" && ")


def asked_for_help(command: Command, words: list[str]) -> None:
    """Click reads all options before it prints the help, and refuses those that it does not know."""
    result = CliRunner().invoke(command, [*words, "--help"])
    assert result.exit_code == 0, result.output


def check_pytest(words: list[str]) -> None:
    rest = iter(words)
    for word in rest:
        if word == "-k":
            pattern = next(rest)
            assert any(pattern in name for name in NAMES), pattern
        elif word == "-m":
            assert next(rest) == "gpu"
        else:
            assert word in PYTEST_OPTIONS or (REPO / word).exists(), word


def check_python(words: list[str]) -> None:
    if words[0] != "-m":
        check_script(words)
        return
    assert find_spec(words[1]) is not None
    if words[1] == profiling.__name__:
        asked_for_help(profiling.main, words[2:])


def check_script(words: list[str]) -> None:
    places = [REPO / words[0], REPO / "scripts" / "gpu" / words[0]]  # install.sh lies beside the archives
    assert any(place.exists() for place in places), words[0]


def check_grep(words: list[str]) -> None:
    """The text is one that our source logs."""
    sources = (REPO / "python" / "sglang_layered").rglob("*.py")
    assert any(words[0] in path.read_text() for path in sources), words[0]


def check_word(word: str) -> None:
    """A flag, a metric, a file, a program or a value that stands by itself."""
    if word.startswith(PREFIX):
        assert word.removeprefix(PREFIX) in {metric.name for metric in METRICS}, word
    elif word.endswith(".toml"):
        assert (REPO / word).exists() or (CAMPAIGN / word).exists(), word
    elif "/" in word and not MADE_THERE.match(word):
        assert (REPO / word).exists(), word
        assert (REPO / word).suffix or (REPO / word).stat().st_mode & 0o100, f"{word} is not executable"


CHECKS: dict[str, Callable[[list[str]], None]] = {
    "sglang-layered": partial(asked_for_help, cli),
    "pytest": check_pytest,
    "-k": lambda words: check_pytest(["-k", *words]),
    "python": check_python,
    "python3": check_python,
    "sh": check_script,
    "grep": check_grep,
}


@pytest.mark.parametrize("command", sorted(set(commands())))
def test_a_command_resolves(command: str) -> None:
    head, *words = shlex.split(command)
    for word in words:
        assert not word.endswith(".toml") or (REPO / word).exists(), word
    if head in CHECKS:
        CHECKS[head](words)
        return
    check_word(head)
    known = head in SHELL_WORDS or head.startswith("--") or "/" in head
    assert known or not words, f"{command}: what is {head}?"


def test_the_sweeps_of_the_campaign_are_all_asked_for_and_named_as_their_files() -> None:
    text = TODO.read_text()
    for path in CAMPAIGN.glob("*.toml"):
        assert path.name in text, path.name
        assert f'name = "{path.stem}"' in path.read_text(), path.name


def test_limits_of_the_step_table_are_on_one_server_with_the_groups() -> None:
    for path in sorted(CAMPAIGN.glob("beside*.toml")):
        cells = read_sweep(path).cells
        limited = {key_of(cell.spec) for cell in cells if cell.spec.server.settings.get(SETTING)}
        fused = {key_of(cell.spec) for cell in cells if cell.arm.name.startswith("fused")}
        assert limited == fused and len(fused) == 1, path.name
        assert not any(FLAG in cell.spec.server.flags for cell in cells)
