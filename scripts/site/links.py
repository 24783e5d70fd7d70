"""A Markdown extension: links that documents have for readers of the repository lead to pages of the site."""

from pathlib import Path
from urllib.parse import unquote, urlsplit
from xml.etree.ElementTree import Element

from markdown import Markdown
from markdown.extensions import Extension
from markdown.treeprocessors import Treeprocessor
from repository import link, page_of


class SiteLinks(Extension):
    """Set `page` and `source`, its place among the site's sources and its file, before a page is rendered."""

    def __init__(self, repo: Path, known: set[Path]) -> None:
        super().__init__()
        self.repo, self.known = repo, known
        self.page, self.source = "", repo

    def extendMarkdown(self, md: Markdown) -> None:
        """Come before MkDocs, which takes links between the site's sources and checks them, at priority 0."""
        md.treeprocessors.register(_Rewrite(self), "site_links", 1)

    def rewritten(self, target: str) -> str:
        """The link that a page of the site has for that of its document; itself where it leads elsewhere."""
        parts = urlsplit(target)
        place = (self.source.parent / unquote(parts.path)).resolve()
        if parts.scheme or not parts.path or place not in self.known:
            return target
        return parts._replace(path=link(self.page, page_of(place, self.repo))).geturl()


class _Rewrite(Treeprocessor):
    def __init__(self, links: SiteLinks) -> None:
        super().__init__()
        self.links = links

    def run(self, root: Element) -> None:
        for element in root.iter():
            for name in ("href", "src"):
                if target := element.get(name):
                    element.set(name, self.links.rewritten(target))
