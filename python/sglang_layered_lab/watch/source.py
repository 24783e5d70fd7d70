"""Reads a server's metrics page over HTTP, and keeps the samples of the last seconds.

Every failure is one sentence with its remedy. It draws nothing.
"""

import time
from dataclasses import dataclass

import httpx

from sglang_layered.errors import LabError
from sglang_layered_lab.watch.sample import Sample, fell, parse

LENGTH_S = 10.0  # of a window: quantiles need something to stand on
TIMEOUT_S = 5.0


def metrics_url(url: str) -> str:
    """Address of the metrics page: `/metrics` of a server, or the page itself if `url` has a path.

    Raises:
        LabError: `url` is no HTTP address.
    """
    try:
        parts = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise LabError(f"URL {url!r}: {error}; give one like http://127.0.0.1:30000") from error
    if parts.scheme not in ("http", "https") or not parts.host:
        raise LabError(f"URL {url!r} is no HTTP address; give one like http://127.0.0.1:30000")
    return str(parts if parts.path.strip("/") else parts.copy_with(path="/metrics"))


class Scraper:
    """Scrapes one page over a connection that it keeps; a context manager."""

    def __init__(self, url: str) -> None:
        self.url = metrics_url(url)
        self._client = httpx.Client(timeout=TIMEOUT_S, follow_redirects=True)

    def __enter__(self) -> "Scraper":
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def scrape(self) -> Sample:
        """What the server says now.

        Raises:
            LabError: nothing answers, or what answers is no metrics page of SGLang's.
        """
        try:
            answer = self._client.get(self.url)
        except httpx.TimeoutException as error:
            raise LabError(
                f"no answer from {self.url} in {TIMEOUT_S:g} s; check that the server is not stuck"
            ) from error
        except httpx.HTTPError as error:
            raise LabError(f"no server at {self.url} ({error}); start it or give its URL") from error
        if answer.status_code == httpx.codes.NOT_FOUND:
            raise LabError(f"{self.url} is not there; start the server with --enable-metrics")
        if answer.status_code != httpx.codes.OK:
            raise LabError(f"{self.url} answers with status {answer.status_code}; look at the server's log")
        remedy = "give the URL of an SGLang server, or of its router's /engine_metrics"
        try:
            sample = parse(answer.text, time.monotonic())
        except ValueError as error:
            raise LabError(f"{self.url} is not in the text format of Prometheus; {remedy}") from error
        if not sample.series:
            raise LabError(f"{self.url} has no metric of SGLang's; {remedy}")
        return sample


@dataclass(frozen=True, slots=True)
class Window:
    """Samples in order of time, over at most `length_s` or one pair.

    After a restart (`restarted`) the window is the pair around it, then starts again with the newer one.
    """

    samples: tuple[Sample, ...] = ()
    length_s: float = LENGTH_S
    restarted: bool = False

    def add(self, sample: Sample) -> "Window":
        """The window that ends with `sample`."""
        if not self.samples:
            return Window((sample,), self.length_s)
        last = self.samples[-1]
        if fell(last, sample):
            return Window((last, sample), self.length_s, restarted=True)
        earlier = self.samples[1:] if self.restarted else self.samples
        kept = [each for each in earlier if each.time_s >= sample.time_s - self.length_s] or [last]
        return Window((*kept, sample), self.length_s)

    @property
    def pair(self) -> tuple[Sample, Sample] | None:
        """The ends of the window, None before the second sample."""
        return (self.samples[0], self.samples[-1]) if len(self.samples) > 1 else None
