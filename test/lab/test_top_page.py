"""Pages of `top` as they look: rendered to text at two widths, and as colours when the server is gone."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from sglang_layered_lab.watch import text
from sglang_layered_lab.watch.cli import TEXT_AS_IT_IS
from sglang_layered_lab.watch.page import Frame, Page
from sglang_layered_lab.watch.sample import Histogram
from sglang_layered_lab.watch.view import View, view
from test_top_fake_server import FakeServer, idle_server, work

URL = "http://127.0.0.1:30000/metrics"


def worked(server: FakeServer) -> View:
    old = server.sample(10.0)
    work(server)
    return view(old, server.sample(12.0))


def drawn(frame: Frame, width: int, *, styles: bool = False, panels: bool = True) -> str:
    console = Console(
        record=True,
        width=width,
        file=io.StringIO(),
        force_terminal=True,
        color_system="standard",
        **TEXT_AS_IT_IS,
    )
    console.print(Page(frame, panels=panels))
    return console.export_text(styles=styles)


def line_with(page: str, word: str) -> str:
    (line,) = [line for line in page.splitlines() if word in line]
    return line


@pytest.mark.parametrize("width", [80, 140])
def test_page_says_what_the_server_did(width: int) -> None:
    page = drawn(Frame(URL, worked(idle_server())), width)
    for said in (
        *(URL, "model tiny", "mode layered", "policy tokens", "strategy fused", "window 2 s"),
        *("3 of 8 layer groups", "4.2 MB", "2 abort", "1.5 GB/s", "75 %", "300 W", "70 W", "nvml-energy"),
        *("16.3 ms (<= 20)", "300 ms (<= 400)", "75 % (3 of 4)", "500 ms", "25 ms"),
    ):
        assert said in page, said
    assert max(map(len, page.splitlines())) <= width
    assert "\u2026" not in page  # no cell was cut


def test_narrow_page_fits_an_ordinary_terminal() -> None:
    assert len(drawn(Frame(URL, worked(idle_server())), 80).splitlines()) <= 32


def test_bar_grows_with_the_groups_done() -> None:
    def bar(done: int, left: int) -> int:
        server = idle_server()
        old = server.sample(0.0)
        server.of("layered_cohort_groups", state="done").set(done)
        server.of("layered_cohort_groups", state="left").set(left)
        page = drawn(Frame(URL, view(old, server.sample(1.0))), 80, panels=False, styles=True)
        return line_with(page, "layer groups").split("\x1b[0m")[0].count("\u2501")

    assert bar(1, 7) < bar(4, 4) < bar(7, 1)


def test_no_cohort_is_no_progress() -> None:
    server = idle_server()
    for state in ("done", "left"):
        server.of("layered_cohort_groups", state=state).set(0)
    page = drawn(Frame(URL, view(server.sample(0.0), server.sample(1.0))), 80)
    assert "no cohort in flight" in page
    assert "layer groups" not in page


def test_nothing_is_a_dash_and_off_names_the_flag() -> None:
    server = FakeServer(("any",))
    page = drawn(Frame(URL, view(server.sample(0.0), server.sample(1.0))), 80)
    assert line_with(page, "TTFT").split() == ["TTFT", "0", "-", "-", "-"]
    assert "steps      off (--prefill-mode layered)" in page
    assert "experts    off (--enable-expert-traffic-metrics)" in page
    assert "energy     off (--enable-energy-metrics)" in page
    assert "SLO met    off (--slo-ttft-ms or --slo-tbt-ms)" in page
    assert "mode unknown" in page


def test_gone_server_keeps_its_last_numbers_in_grey_with_their_age() -> None:
    seen = worked(idle_server())
    gone = Frame(URL, seen, gone="no server at URL", age_s=12.04)
    page = drawn(gone, 80)
    assert "gone: no server at URL; these numbers are 12 s old; trying again" in " ".join(page.split())
    assert "300 W" in page
    here, grey = (line_with(drawn(f, 80, styles=True), "requests") for f in (Frame(URL, seen), gone))
    assert "\x1b[1;36mrequests" in here
    assert "\x1b[90mrequests" in grey


def test_first_frame_has_no_numbers_yet() -> None:
    assert "rates come with the second" in drawn(Frame(URL, None), 80)


@pytest.mark.parametrize("width", [80, 140])
def test_several_ranks_have_a_line_each(width: int) -> None:
    server = idle_server(ranks=({"dp_rank": "0"}, {"dp_rank": "1"}))
    page = drawn(Frame(URL, worked(server)), width)
    assert [line.strip("\u2502 ").split()[:3] for line in page.splitlines() if " pp0 " in line] == [
        ["dp0", "pp0", "5"],
        ["dp1", "pp0", "0"],
    ]


def test_labels_are_no_markup() -> None:
    server = idle_server()
    server.of("layered_dropped_cohorts_total", reason="[red]:smile:").inc()
    assert "1 [red]:smile:" in drawn(Frame(URL, worked(server)), 80)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.0, "0 s"),
        (0.00042, "420 us"),
        (0.0123, "12.3 ms"),
        (0.999, "999 ms"),
        (1.5, "1.5 s"),
        (1234, "1,234 s"),
    ],
)
def test_times_have_the_unit_that_fits(value: float, said: str) -> None:
    assert text.seconds(value) == said


def test_quantile_above_all_buckets_says_no_more_than_it_knows() -> None:
    assert text.quantile_s(Histogram((1.0, float("inf")), (0.0, 5.0), 50.0), 0.5) == "> 1 s"


def test_bound_of_another_unit_says_so() -> None:
    times = Histogram((0.9, 1.0, float("inf")), (0.0, 5.0, 0.0), 5.0)
    assert text.quantile_s(times, 0.5) == "950 ms (<= 1 s)"
