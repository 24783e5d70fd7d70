"""`sglang-layered top` against a real HTTP server on loopback, and its errors."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from click.testing import CliRunner

from sglang_layered.errors import LabError
from sglang_layered_lab.watch import cli
from sglang_layered_lab.watch.cli import top
from sglang_layered_lab.watch.page import frames
from sglang_layered_lab.watch.source import Scraper, metrics_url
from test_top_fake_server import idle_server, work


@contextmanager
def serving(answer: Any) -> Iterator[str]:
    """Serve what `answer(path)` returns: a status and a body."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = answer(self.path)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def working_server() -> Iterator[str]:
    """Works once before each scrape but the first."""
    server, scrapes = idle_server(), []

    def answer(path: str) -> tuple[int, str]:
        if path != "/metrics":
            return 404, "not found"
        if scrapes:
            work(server)
        scrapes.append(path)
        return 200, server.text()

    with serving(answer) as url:
        yield url


def test_once_prints_one_page_of_plain_text() -> None:
    with working_server() as url:
        result = CliRunner().invoke(top, [url, "--once", "--interval", "0.1"], catch_exceptions=False)
    assert result.exit_code == 0
    assert "\x1b" not in result.output
    assert result.output.count("sglang-layered top") == 1
    assert f"{url}/metrics" in result.output
    assert "3 of 8 layer groups" in result.output


def test_plain_prints_page_after_page_until_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(cli.time, "sleep", sleep)
    with working_server() as url:
        result = CliRunner().invoke(top, [url, "--plain", "--interval", "7"], catch_exceptions=False)
    assert result.exit_code == 0
    assert result.output.count("sglang-layered top") == 3
    assert waits == [7] * 4


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (404, "not found", "--enable-metrics"),
        (500, "", "status 500; look at the server's log"),
        (200, "<html>\n{hello\n", "not in the text format"),
        (
            200,
            "# TYPE other counter\nother_total 1\n",
            "no metric of SGLang's; give the URL of an SGLang server",
        ),
    ],
)
def test_a_page_of_another_kind_is_one_error_with_a_remedy(status: int, body: str, said: str) -> None:
    with serving(lambda _: (status, body)) as url:
        result = CliRunner().invoke(top, [url, "--once"])
    assert isinstance(result.exception, LabError)
    assert said in str(result.exception)
    assert f"{url}/metrics" in str(result.exception)


def test_no_server_is_an_error_at_start() -> None:
    with serving(lambda _: (200, "")) as url:
        pass
    with pytest.raises(LabError, match=r"no server at .*start it or give its URL"):
        CliRunner().invoke(top, [url], catch_exceptions=False)


@pytest.mark.parametrize(
    "url", ["127.0.0.1:30000", "ftp://host", "http://", "http://host:port", "x", "http://[::1"]
)
def test_bad_url_is_an_error_that_shows_a_good_one(url: str) -> None:
    with pytest.raises(LabError, match=r"http://127\.0\.0\.1:30000") as caught:
        metrics_url(url)
    assert repr(url) in str(caught.value)


@pytest.mark.parametrize(
    ("url", "page"),
    [
        ("http://h:1", "http://h:1/metrics"),
        ("https://h/", "https://h/metrics"),
        ("http://h:1/engine_metrics", "http://h:1/engine_metrics"),
    ],
)
def test_metrics_page_of_a_url(url: str, page: str) -> None:
    assert metrics_url(url) == page


def test_server_that_goes_and_comes_back() -> None:
    server, up, clock = idle_server(), [True], [0.0]

    def answer(_: str) -> tuple[int, str]:
        work(server)
        return (200, server.text()) if up[0] else (503, "")

    def wait() -> None:
        clock[0] += 2.0

    with serving(answer) as url, Scraper(url) as scraper:

        def scrape() -> Any:
            sample = scraper.scrape()
            return type(sample)(clock[0], sample.series, sample.cumulative)

        stream = frames(url, scrape, wait, lambda: clock[0])
        first, second = next(stream), next(stream)
        up[0] = False
        gone, longer = next(stream), next(stream)
        up[0] = True
        back = next(stream)
    assert (first.view, first.gone) == (None, "")
    assert second.view is not None and second.age_s == 0
    assert [frame.age_s for frame in (gone, longer)] == [2.0, 4.0]
    assert "status 503" in gone.gone
    assert gone.view == longer.view == second.view
    assert back.gone == "" and back.view is not None and back.view.window_s == 8.0
