"""What documents name is there: files, headings, flags, commands, scripts; the index leads to all of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from sglang_layered.cli.groups import commands
from sglang_layered.config import LayeredConfig
from sglang_layered.flag_fields import flag_name

REPO = Path(__file__).resolve().parents[2]
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`[^`\n]+`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ +(.+?) *$", re.MULTILINE)
DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "docker/*.md", "kernels/*.md", "results/**/*.md", ".github/**/*.md")
    for path in REPO.glob(pattern)
)
FLAG = re.compile(r"(?<![\w-])--(?:layered|slo|prefill-mode|enable-expert-traffic|enable-energy)[a-z-]*")
COMMAND = re.compile(r"(?:^ {4}|`)(?:\S*/)?sglang-layered ([a-z][a-z-]+)", re.MULTILINE)
SCRIPT = re.compile(r"(?:^ {4}|`)(?:\./)?(scripts/[\w./-]*\w)", re.MULTILINE)
HISTORY = {"log.md", "CHANGELOG.md"}
OF_TODAY = [path for path in DOCUMENTS if path.name not in HISTORY and path.parent.name != "cpu"]


def links(document: Path) -> Iterator[tuple[Path, str]]:
    """File and heading of every link that leads to a file of the repository."""
    text = CODE.sub("", FENCED.sub("", document.read_text(encoding="utf-8")))
    for target in LINK.findall(text):
        if not re.match(r"[a-z]+:", target):
            place, _, heading = target.partition("#")
            yield (document.parent / place).resolve() if place else document, heading


def anchors(document: Path) -> set[str]:
    """Names of the headings, as forges make them; a name that comes again gets a number."""
    seen: dict[str, int] = {}
    for heading in HEADING.findall(FENCED.sub("", document.read_text(encoding="utf-8"))):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        name = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        seen[name] = seen.get(name, -1) + 1
    return {f"{name}-{turn}" if turn else name for name, most in seen.items() for turn in range(most + 1)}


def leads_nowhere(place: Path, heading: str) -> bool:
    if not place.exists():
        return True
    return bool(heading) and heading not in anchors(place)


def name_of(document: Path) -> str:
    return str(document.relative_to(REPO))


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_links_lead_somewhere(document: Path) -> None:
    assert not [f"{place}#{heading}" for place, heading in links(document) if leads_nowhere(place, heading)]


def test_the_index_leads_to_every_document_and_to_every_answer() -> None:
    index = REPO / "docs" / "README.md"
    led = {place for place, _ in links(index)}
    assert not set((REPO / "docs").glob("*.md")) - led - {index}
    assert not {place for place, _ in links(REPO / "docs" / "reader-test.md")} - led - {index}


@pytest.mark.parametrize("document", OF_TODAY, ids=name_of)
def test_flags_commands_and_scripts_are_there(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    assert not set(FLAG.findall(text)) - {flag_name(item.name) for item in fields(LayeredConfig)}
    assert not set(COMMAND.findall(text)) - set(commands())
    assert not {script for script in SCRIPT.findall(text) if not (REPO / script).exists()}
