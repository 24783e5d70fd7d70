"""Reads a server's metrics page over HTTP. Every failure is one sentence with its remedy."""

from __future__ import annotations

import time

import httpx

from sglang_layered.errors import TopError
from sglang_layered_lab.top.sample import Sample, parse

TIMEOUT_S = 5.0


def metrics_url(url: str) -> str:
    """Address of the metrics page: `/metrics` of a server, or the page itself if `url` has a path.

    Raises:
        TopError: `url` is no HTTP address.
    """
    try:
        parts = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise TopError(f"URL {url!r}: {error}; give one like http://127.0.0.1:30000") from error
    if parts.scheme not in ("http", "https") or not parts.host:
        raise TopError(f"URL {url!r} is no HTTP address; give one like http://127.0.0.1:30000")
    return str(parts if parts.path.strip("/") else parts.copy_with(path="/metrics"))


class Scraper:
    """Scrapes one page over a connection that it keeps; a context manager."""

    def __init__(self, url: str) -> None:
        self.url = metrics_url(url)
        self._client = httpx.Client(timeout=TIMEOUT_S, follow_redirects=True)

    def __enter__(self) -> Scraper:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def scrape(self) -> Sample:
        """What the server says now.

        Raises:
            TopError: nothing answers, or what answers is no metrics page of SGLang's.
        """
        answer = self._get()
        if answer.status_code == httpx.codes.NOT_FOUND:
            raise TopError(f"{self.url} is not there; start the server with --enable-metrics")
        if answer.status_code != httpx.codes.OK:
            raise TopError(f"{self.url} answers with status {answer.status_code}; look at the server's log")
        try:
            sample = parse(answer.text, time.monotonic())
        except ValueError as error:
            raise TopError(self._foreign("is not in the text format of Prometheus")) from error
        if not sample.series:
            raise TopError(self._foreign("has no metric of SGLang's"))
        return sample

    def _get(self) -> httpx.Response:
        try:
            return self._client.get(self.url)
        except httpx.TimeoutException as error:
            raise TopError(
                f"no answer from {self.url} in {TIMEOUT_S:g} s; check that the server is not stuck"
            ) from error
        except httpx.HTTPError as error:
            raise TopError(f"no server at {self.url} ({error}); start it or give its URL") from error

    def _foreign(self, what: str) -> str:
        return f"{self.url} {what}; give the URL of an SGLang server, or of its router's /engine_metrics"
