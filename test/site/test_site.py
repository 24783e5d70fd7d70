"""The built site has what the documents have, and a reference of all that the code declares."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, get_args

import pytest
from markdown_it import MarkdownIt

from sglang_layered import errors, hooks
from sglang_layered.config import LayeredConfig
from sglang_layered.core.events import Event
from sglang_layered.flag_fields import flag_name
from sglang_layered.metrics.table import METRICS
from sglang_layered_lab.bench.record import BenchRecord, Repetition
from sglang_layered_lab.bench.spec import BenchSpec
from sglang_layered_lab.bench.sweep_spec import Arm, SweepSettings
from sglang_layered_lab.bench.trace import RequestTrace

REPO = Path(__file__).resolve().parents[2]
PAGES = {
    "README.md": "",
    "docs/README.md": "documents",
    "docker/README.md": "docker",
    "kernels/README.md": "kernels",
    "results/cpu/REPORT.md": "results/cpu/REPORT",
    "results/h200/TODO.md": "results/h200/TODO",
    **{name: name.removesuffix(".md") for name in ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")},
    **{f"docs/{path.name}": path.stem for path in (REPO / "docs").glob("*.md") if path.name != "README.md"},
}
SHAPE = {
    "h1",
    "h2",
    "h3",
    "h4",
    "ul",
    "ol",
    "li",
    "table",
    "tr",
    "th",
    "td",
    "pre",
    "img",
    "a",
    "code",
    "strong",
    "em",
}


class Shape(HTMLParser):
    """Counts elements of a document, or of what a page shows within <article>, less what the theme adds."""

    def __init__(self, html: str, *, is_page: bool) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.is_inside = not is_page
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.is_inside |= tag == "article"
        if self.is_inside and tag in SHAPE and dict(attrs).get("class") != "headerlink":
            self.counts[tag] += 1

    def handle_endtag(self, tag: str) -> None:
        self.is_inside &= tag != "article"


def text_of(site: Path, page: str) -> str:
    """What a page of the reference says, without its tags."""
    html = (site / "reference" / page / "index.html").read_text(encoding="utf-8")
    return re.sub(r"<[^>]+>", "", html.partition("<article")[2].partition("</article")[0])


@pytest.mark.parametrize("document", PAGES)
def test_a_page_is_laid_out_as_on_a_forge(document: str, site: Path) -> None:
    forge = MarkdownIt("gfm-like", {"linkify": False, "html": True})
    expected = Shape(forge.render((REPO / document).read_text(encoding="utf-8")), is_page=False).counts
    page = (site / PAGES[document] / "index.html").read_text(encoding="utf-8")
    assert Shape(page, is_page=True).counts == expected


def test_no_page_needs_another_host(site: Path) -> None:
    loads = re.compile(
        r"""<(?:script|img|link(?! rel="canonical"))\b[^>]*(?:src|href)="(?:https?:)?//[^"]*"""
    )
    pages = list(site.rglob("*.html"))
    assert len(pages) > 60
    assert not {found for page in pages for found in loads.findall(page.read_text(encoding="utf-8"))}


def test_the_reference_has_every_flag_and_every_metric(site: Path) -> None:
    flags, metrics = text_of(site, "flags").split(), text_of(site, "metrics").split()
    assert not {flag_name(item.name) for item in fields(LayeredConfig)} - set(flags)
    assert not {metric.name for metric in METRICS} - set(metrics)


def spec_keys(kind: Any, prefix: str) -> Iterator[str]:
    """Dotted keys of a section, those of its tables after it."""
    for name, field in kind.__pydantic_fields__.items():
        if not field.exclude:
            inner = [each for each in (field.annotation, *get_args(field.annotation)) if is_dataclass(each)]
            yield from (f"{prefix}{name}.{key}" for each in inner for key in spec_keys(each, ""))
            if not inner:
                yield prefix + name


def test_the_reference_has_every_key_of_a_spec(site: Path) -> None:
    keys = {*spec_keys(BenchSpec, ""), *spec_keys(SweepSettings, "sweep."), *spec_keys(Arm, "arms.")}
    assert len(keys) > 60
    assert not keys - set(text_of(site, "bench-spec").split())


@pytest.mark.parametrize("event", get_args(Event), ids=lambda event: event.__name__)
def test_the_reference_has_every_event_with_its_fields(event: Any, site: Path) -> None:
    _, _, section = text_of(site, "events").partition(f"{event.__name__}(")
    assert re.findall(r"(\w+): ", section.partition("\n)")[0]) == [item.name for item in fields(event)]


def test_the_reference_has_all_that_the_interface_exports_and_every_error(site: Path) -> None:
    names = {name for module in (hooks, errors) for name in vars(module) if name[0].isupper()}
    assert len(names) > 40
    pages = [site / "reference" / page / "index.html" for page in ("hooks", "events", "errors")]
    headings = [re.findall(r'<h2 id="[\w.]*?(\w+)"', page.read_text(encoding="utf-8")) for page in pages]
    assert not names - {name for page in headings for name in page} - {"Event"}  # the union of all events


@pytest.mark.parametrize("kind", [BenchRecord, Repetition, RequestTrace], ids=lambda kind: kind.__name__)
def test_the_reference_has_the_fields_of_a_record(kind: Any, site: Path) -> None:
    _, _, section = text_of(site, "records").partition(f"{kind.__name__}(")
    assert not {item.name for item in fields(kind)} - set(re.findall(r"(\w+): ", section))
