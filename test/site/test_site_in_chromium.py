"""The site's main pages in headless Chromium: no grave finding of axe, nothing too wide, no other host asked.

Screenshots go to `out/pages/`, to be looked at.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from browser import DESKTOP, PHONE, chromium, grave_findings, runs_over

SHOTS = Path(__file__).resolve().parents[2] / "out" / "pages"
LOOKS: dict[str, dict[str, Any]] = {
    "desktop": {"viewport": DESKTOP, "color_scheme": "light"},
    "phone": {"viewport": PHONE, "color_scheme": "dark"},
}
PAGES = ("", "flags/", "architecture/", "reference/events/")  # in every look
ON_A_DESK = (
    "documents/",
    "log/",
    "examples/",
    "examples/policy_by_load.py/",
    "reference/",
    "reference/hooks/",
)
SEEN = [*((page, look) for look in LOOKS for page in PAGES), *((page, "desktop") for page in ON_A_DESK)]


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=site)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as running:
        yield running


@contextmanager
def opened(browser: Any, address: str, page: str, **settings: Any) -> Iterator[Any]:
    """A page of the site; its errors, and whatever it asks of another host, fail the test."""
    context = browser.new_context(**settings)
    shown, faults = context.new_page(), []
    shown.on("pageerror", lambda error: faults.append(str(error)))
    shown.on("request", lambda asked: None if asked.url.startswith(address) else faults.append(asked.url))
    shown.goto(address + page)
    yield shown
    context.close()
    assert not faults


@pytest.fixture(scope="module")
def with_diagrams(site: Path) -> None:
    if not (site / "mermaid.js").exists():
        pytest.skip("npm could not bring what draws diagrams: the pages would ask another host")


@pytest.mark.parametrize(("page", "look"), SEEN)
def test_it_can_be_read(page: str, look: str, browser: Any, address: str, with_diagrams: None) -> None:
    with opened(browser, address, page, **LOOKS[look]) as shown:
        shown.wait_for_function("document.querySelectorAll('pre.mermaid').length === 0")
        name = page.strip("/").replace("/", "-") or "home"
        SHOTS.mkdir(parents=True, exist_ok=True)
        shown.screenshot(path=SHOTS / f"site-{name}-{look}.png")
        assert not grave_findings(shown)
        assert runs_over(shown) <= 0


def test_search_finds_a_flag(browser: Any, address: str) -> None:
    with opened(browser, address, "", **LOOKS["desktop"]) as shown:
        shown.locator("input.md-search__input").press_sequentially("layered-max-parked")
        shown.locator(".md-search-result__link[href*='reference/flags']").first.click()
        shown.wait_for_url("**/reference/flags/**")
        assert "--layered-max-parked" in shown.locator("article").inner_text()


def test_a_diagram_is_drawn(browser: Any, address: str, with_diagrams: None) -> None:
    with opened(browser, address, "architecture/", **LOOKS["desktop"]) as shown:
        drawn = shown.locator("div.mermaid")
        drawn.wait_for()
        assert drawn.bounding_box()["height"] > 100
