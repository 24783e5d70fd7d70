"""Headless Chromium for tests of pages: the one on PATH, driven by Playwright; axe beside it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PHONE, DESKTOP = {"width": 390, "height": 844}, {"width": 1280, "height": 900}
GRAVE = ("serious", "critical")


def chromium_path() -> str:
    """Chromium's program; skips the test where there is none, or no Playwright to drive it."""
    pytest.importorskip("playwright", reason="Playwright is not installed: pip install playwright")
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip("no Chromium here: apt-get install chromium, or its path in CHROMIUM")
    return found


@contextmanager
def chromium() -> Iterator[Any]:
    """A running browser. Root may have no sandbox of its own, so it gets none; it sees local files only."""
    path = chromium_path()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@contextmanager
def opened(browser: Any, path: Path, *, is_frozen: bool = False, **settings: Any) -> Iterator[Any]:
    """A page in a context of its own; its errors, and whatever it asks a network for, fail the test.

    Of a frozen page time passes only by `page.clock.run_for`.
    """
    context = browser.new_context(**{"viewport": DESKTOP, "reduced_motion": "no-preference", **settings})
    page, faults = context.new_page(), []
    context.set_default_timeout(20_000)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
    page.on("request", lambda asked: None if asked.url == path.as_uri() else faults.append(asked.url))
    if is_frozen:
        page.clock.install(time=0)
        page.clock.pause_at(1000)
    page.goto(path.as_uri())
    yield page
    context.close()
    assert not faults, faults


def grave_findings(page: Any) -> list[str]:
    """What axe finds that is serious or worse: rule, and the elements."""
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="pip install axe-playwright-python"
    )
    found = axe.Axe().run(page).response["violations"]
    return [
        f"{each['id']}: {'; '.join(node['html'][:160] for node in each['nodes'][:3])}"
        for each in found
        if each["impact"] in GRAVE
    ]


def runs_over(page: Any) -> int:
    """Pixels by which the page is wider than its window: nobody should have to scroll it sideways."""
    return int(page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))
