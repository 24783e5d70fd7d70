"""What MkDocs asks while it builds the site: which files there are, and where links lead."""

import os
from pathlib import Path

from links import SiteLinks
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from reference import pages
from repository import CODE, code_text, folder_text, link, page_of, reached

REPO = Path(__file__).resolve().parents[2]
STARTS = [REPO / "README.md", *sorted((REPO / "docs").glob("*.md"))]
SITE_LINKS = SiteLinks(REPO, set())


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Have links rewritten in every page."""
    config.markdown_extensions.append(SITE_LINKS)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what lies outside docs/. docs/README.md gives up the home page to the repository's README."""
    files.remove(files.get_file_from_path("README.md"))
    SITE_LINKS.known = reached(STARTS)
    for path in sorted(SITE_LINKS.known, key=lambda path: (path.is_file(), path)):
        place = page_of(path, REPO)
        if files.get_file_from_path(place) is None:
            files.append(_file(path, place, config))
    for place, text in pages(REPO).items():
        files.append(File.generated(config, place, content=text))
    for place, path in _ASSETS.items():
        if path.is_file():
            files.append(File.generated(config, place, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Say whose links are next."""
    place = page.file.src_uri
    SITE_LINKS.page, SITE_LINKS.source = place, _SOURCES.get(place, REPO / "docs" / place)
    return markdown


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Name the theme's search dialog, and bring along what draws diagrams."""
    output = output.replace('role="dialog"', 'role="dialog" aria-label="Search"')
    if 'class="mermaid"' in output and _ASSETS["mermaid.js"].is_file():
        script = f'<script src="{link(page.file.dest_uri, "mermaid.js")}"></script>'
        output = output.replace("</body>", f"{script}</body>")
    return output


_SOURCES: dict[str, Path] = {}
_ASSETS = {name: REPO / "scripts/site" / name for name in ("site.css", "site.js")}
_ASSETS["mermaid.js"] = REPO / os.environ.get("MERMAID", "")


def _file(path: Path, place: str, config: MkDocsConfig) -> File:
    if path.is_dir():
        _SOURCES[place] = path / "README.md"
        return File.generated(config, place, content=folder_text(path, REPO))
    _SOURCES[place] = path
    if path.suffix in CODE:
        return File.generated(config, place, content=code_text(path, REPO))
    return File.generated(config, place, abs_src_path=str(path))
