"""The report and the replay in headless Chromium: no network, nothing too wide, no grave finding of axe.

Screenshots go to `out/pages/`, to be looked at.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import DESKTOP, PHONE, chromium, grave_findings, opened, runs_over

from bench_sweeps import ARMS, write_sweep
from sglang_layered_lab.bench.report import write_report
from sglang_layered_lab.quickstart.replay import BEFORE_S, read_played, write_replay

REPO = Path(__file__).resolve().parents[2]
RECORD = REPO / "results/quickstart/2026-11-30-2cores"
SHOTS = REPO / "out" / "pages"
LOOKS: dict[str, dict[str, Any]] = {
    "desktop": {"viewport": DESKTOP},
    "dark": {"viewport": DESKTOP, "color_scheme": "dark"},
    "phone": {"viewport": PHONE, "device_scale_factor": 2, "has_touch": True},
}
A4_WIDTH = 718  # CSS pixels of a sheet within Chromium's margins


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    some = {name: ARMS[name] for name in ("default", "mixed-512", "layered-4")}
    write_sweep(folder / "sweep", arms=some, num_requests=3, rounds=2, num_background=1, joules=5.0)
    return write_report([folder / "sweep"], folder / "report.html")


@pytest.fixture(scope="module")
def replay(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_replay(RECORD, tmp_path_factory.mktemp("replay") / "replay.html")


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("name", ["report", "replay"])
def test_it_can_be_read(name: str, look: str, browser: Any, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(name)
    with opened(browser, path, **LOOKS[look], is_frozen=True) as page:
        page.clock.run_for(1700)
        SHOTS.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=SHOTS / f"{name}-{look}.png", full_page=name == "replay")
        page.clock.resume()  # axe waits by timers
        assert not grave_findings(page)
        assert runs_over(page) <= 0


@pytest.mark.parametrize("name", ["report", "replay"])
def test_on_paper_nothing_is_cut_off(name: str, browser: Any, request: pytest.FixtureRequest) -> None:
    sheet = {"viewport": {"width": A4_WIDTH, "height": 1000}, "color_scheme": "dark"}
    with opened(browser, request.getfixturevalue(name), **sheet) as page:
        page.emulate_media(media="print")
        assert runs_over(page) <= 0
        assert page.evaluate("getComputedStyle(document.body).color") == "rgb(34, 34, 34)"
        assert page.pdf(format="A4").startswith(b"%PDF")


def test_pictures_take_the_colours_of_the_page(report: Path, browser: Any) -> None:
    fill = "getComputedStyle(document.querySelector('.picture path')).fill"  # the first one is the paper
    for scheme, colour in (("light", "rgb(255, 255, 255)"), ("dark", "rgb(21, 24, 28)")):
        with opened(browser, report, color_scheme=scheme) as page:
            assert (
                page.evaluate(fill)
                == colour
                == page.evaluate("getComputedStyle(document.body).backgroundColor")
            )


def seen(page: Any) -> list[list[int]]:
    """Visible blocks of each mode: of the prompt, then of every conversation."""
    counts: list[list[int]] = page.evaluate("""() => {
        const shown = (lane) => lane.querySelectorAll("i:not([hidden])").length;
        const of = (mode) => [...mode.querySelectorAll(".lane")].map(shown);
        return [...document.querySelectorAll(".mode")].map(of);
    }""")
    return counts


def recorded(at_s: float) -> list[list[int]]:
    """What the record says of the same, counted from its arrivals."""
    counts = []
    for mode in read_played(RECORD):
        [long], running = mode.middle().traces, mode.middle().background
        counts.append(
            [
                sum(-BEFORE_S < round(each.time_s - long.sent_s, 3) <= at_s for each in trace.arrivals)
                for trace in (long, *running)
            ]
        )
    return counts


def test_it_plays_in_true_time_what_the_record_says(replay: Path, browser: Any) -> None:
    with opened(browser, replay, is_frozen=True) as page:
        for wall_s in (1.0, 2.0):  # of the page's own clock
            page.clock.run_for(1000)
            at_s = float(page.locator("#time").get_attribute("aria-valuetext").split()[0])
            assert at_s == pytest.approx(wall_s - BEFORE_S, abs=0.12)
        page.locator("#play").click()
        page.locator("#time").fill("1.5")
        assert seen(page) == recorded(1.5)
        page.locator("#time").press("End")
        assert seen(page) == recorded(99.0)
        states = page.locator(".state").all_inner_texts()
        assert states[0].startswith("end of its record")


def test_the_keyboard_is_enough_and_a_screen_reader_is_told(replay: Path, browser: Any) -> None:
    with opened(browser, replay, is_frozen=True) as page:
        told, play, time = (page.locator(f"#{name}") for name in ("told", "play", "time"))
        assert told.get_attribute("role") == "status"
        page.keyboard.press("Tab")
        assert play.evaluate("each => each === document.activeElement")
        page.clock.run_for(700)
        page.keyboard.press("Space")
        assert play.inner_text() == "Play" and told.text_content().startswith("Paused at 0.")
        before = seen(page)
        page.clock.run_for(3000)
        assert seen(page) == before
        page.keyboard.press("Tab")
        page.keyboard.press("ArrowDown")
        assert page.locator("#speed").input_value() == "2"
        page.keyboard.press("Tab")
        there = float(time.input_value())
        page.keyboard.press("ArrowRight")
        assert float(time.input_value()) == pytest.approx(there + 0.05, abs=0.051)
        play.press("Enter")
        page.clock.run_for(1800)  # twice as fast: past the first tokens of two modes
        assert "layered: the prompt's first token, after 3." in told.text_content()
        page.clock.run_for(9000)
        assert play.inner_text() == "Play again" and told.text_content() == "The end"


def test_with_reduced_motion_nothing_moves_by_itself(replay: Path, browser: Any) -> None:
    with opened(browser, replay, is_frozen=True, reduced_motion="reduce") as page:
        page.clock.run_for(1000)
        assert page.locator("#play").inner_text() == "Play again"
        assert seen(page) == recorded(99.0)
        page.locator("#play").click()
        page.clock.run_for(1200)  # to 0.7 s: shown is the state of 0 s
        assert seen(page) == recorded(0.0)


def test_without_javascript_all_figures_are_there(replay: Path, browser: Any) -> None:
    with opened(browser, replay, java_script_enabled=False) as page:
        assert not page.locator("#play").is_visible()
        assert page.locator("noscript").count() == 1
        assert page.locator(".strip").count() == 3
        assert "2.43" in page.locator("table").inner_text()


def test_what_these_tests_look_for_is_found(tmp_path: Path, browser: Any) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text('<p style="width: 3000px"><img src="file:///nowhere.png"><button></button>')
    with pytest.raises(AssertionError, match=r"nowhere.png"), opened(browser, bad) as page:
        found = " ".join(grave_findings(page))
        assert "image-alt" in found and "button-name" in found and "html-has-lang" in found
        assert runs_over(page) > 1000
