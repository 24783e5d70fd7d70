"""Links of the documents lead to files and headings that are there, and the index leads to every document."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

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


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(REPO)))
def test_links_lead_somewhere(document: Path) -> None:
    assert not [f"{place}#{heading}" for place, heading in links(document) if leads_nowhere(place, heading)]


def test_the_index_leads_to_every_document_and_to_every_answer() -> None:
    index = REPO / "docs" / "README.md"
    led = {place for place, _ in links(index)}
    assert not set((REPO / "docs").glob("*.md")) - led - {index}
    assert not {place for place, _ in links(REPO / "docs" / "reader-test.md")} - led - {index}
