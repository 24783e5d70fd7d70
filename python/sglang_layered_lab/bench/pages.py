"""Pages of one file: templates, and pictures that lie in the page and take its colours, light or dark."""

import re
from collections.abc import Mapping
from html import escape
from io import StringIO
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib import rc_context

from sglang_layered_lab.bench import plots
from sglang_layered_lab.bench.pictures import Picture

INDEX = "index.html"
DARK: Mapping[str, str] = {  # of the pictures' colours what they are on a dark page; others stay
    "#ffffff": "#15181c",
    "#000000": "#e6e6e6",
    plots.INK: "#e6e6e6",
    plots.QUIET: "#9a9a9a",
    plots.GRID: "#33383e",
    plots.MARK: "#ff7b6b",
    plots.SPARE_COLOURS[1]: "#e0789f",
    plots.SPARE_COLOURS[2]: "#b7a253",
    plots.COLOURS["default"]: "#c9c9c9",
    plots.COLOURS["whole"]: "#a8a8a8",
    plots.COLOURS["mixed"]: "#e6a04a",
    plots.COLOURS["pdmux"]: "#b98ad0",
    plots.COLOURS["layered"]: "#5aa9ea",
}
NO_FACTS = dict.fromkeys(("Creator", "Date", "Format", "Type"))
SIZE = re.compile(r'<svg [^>]*?viewBox="([^"]+)"[^>]*>')
NAMES = re.compile(r'(\bid="|href="#|url\(#)')
COLOUR = re.compile(r"#[0-9a-f]{6}\b")


def render(template: str, **values: Any) -> str:
    """A page of `templates/`; every value is escaped, and one that is not given is an error."""
    environment = Environment(
        loader=PackageLoader("sglang_layered_lab.bench", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["variable"] = _variable
    return environment.get_template(template).render(dark=DARK, **values)


def page_path(out: Path) -> Path:
    """The file that is written: `out`, or `index.html` in it where its name does not end as a page's."""
    return out if out.suffix.lower() in (".html", ".htm") else out / INDEX


def write_page(out: Path, text: str) -> Path:
    """Write a page to `page_path`, with the folders above it; the path."""
    path = page_path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def inline(picture: Picture) -> str:
    """A picture as an SVG element, safe in a page; no two pictures share a name in it."""
    drawn = StringIO()
    with rc_context({**plots.STYLE, "svg.hashsalt": picture.stem}):
        picture.draw().savefig(drawn, format="svg", metadata=NO_FACTS)
    text = drawn.getvalue()
    found = SIZE.search(text)
    assert found is not None  # matplotlib writes one
    body = NAMES.sub(rf"\1{re.sub(r'[^A-Za-z0-9_-]', '_', picture.stem)}-", text[found.end() :])
    body = COLOUR.sub(lambda colour: themed(colour[0]), body)
    said = f'role="img" aria-label="{escape(picture.title)}"'
    head = f'<svg {said} viewBox="{found[1]}" class="picture" fill="currentColor">'
    # The picture's texts are outlines; where they are words, in comments, matplotlib escapes them.
    return head + body


def themed(colour: str) -> str:
    """A colour of a picture as CSS has it in a page, light or dark."""
    return _variable(colour) if colour in DARK else colour


def _variable(colour: str) -> str:
    return f"var(--c{colour.removeprefix('#')})"
