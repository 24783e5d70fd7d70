"""Asks a Prometheus through its HTTP API (`/api/v1`): what a query gives, and its loaded rules."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import httpx

from sglang_layered.errors import LabError

TIMEOUT_S = 30.0
SCRAPES_A_RATE = 4  # a rate needs two scrapes; four survive a missed one, as in Grafana's $__rate_interval
UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
DURATION = re.compile(r"(\d+)(ms|s|m|h|d|w)")


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of time and its resolution, in seconds; `start_s` and `end_s` are Unix times."""

    start_s: float
    end_s: float
    step_s: float

    @property
    def num_points(self) -> int:
        """Points of time from the start in steps, up to the end; Prometheus cuts both to milliseconds."""
        return math.floor((self.end_s - self.start_s + 0.001) / self.step_s) + 1


@dataclass(frozen=True, slots=True)
class Series:
    """A series' labels, and its value at each point of a window: NaN where it has none."""

    labels: Mapping[str, str]
    values: tuple[float, ...]


class Prometheus:
    """Client of one Prometheus server, a context manager; its `url` is without a password that was given.

    Raises:
        LabError: from every method, with the server's own words, where it refuses or is not there.
    """

    def __init__(self, url: str) -> None:
        self.url = _without_password(url.rstrip("/"))
        self._client = httpx.Client(base_url=f"{url.rstrip('/')}/api/v1", timeout=TIMEOUT_S, trust_env=False)

    def __enter__(self) -> "Prometheus":
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def has_data(self, expr: str, window: Window) -> bool:
        """Whether `expr` has a finite value somewhere in the window."""
        return any(math.isfinite(value) for series in self.series(expr, window) for value in series.values)

    def series(self, expr: str, window: Window) -> list[Series]:
        """What `expr` gives at the points of the window, in Prometheus' order."""
        span = {"start": window.start_s, "end": window.end_s, "step": window.step_s}
        found = []
        for series in self._ask("/query_range", {"query": expr, **span})["result"]:
            values = [math.nan] * window.num_points
            for time_s, value in series["values"]:
                values[round((time_s - window.start_s) / window.step_s)] = float(value)
            found.append(Series(series["metric"], tuple(values)))
        return found

    def label_values(self, label: str, selector: str, window: Window) -> list[str]:
        """Values that a label has in the series of a selector, in order."""
        asked = {"match[]": selector, "start": window.start_s, "end": window.end_s}
        return list(self._ask(f"/label/{label}/values", asked))

    def rules(self) -> list[dict[str, Any]]:
        """All loaded rules as the API describes them: name, query, type, health, lastError."""
        return [rule for group in self._ask("/rules")["groups"] for rule in group["rules"]]

    def scrape_interval_s(self) -> float:
        """Return the longest interval at which a target is scraped; without a target LabError."""
        targets = self._ask("/targets", {"state": "active"})["activeTargets"]
        if not targets:
            raise LabError(f"--prometheus {self.url}: scrapes no target; see its page /targets")
        return max(seconds(target["scrapeInterval"]) for target in targets)

    def _ask(self, path: str, fields: dict[str, Any] | None = None) -> Any:
        try:
            reply = self._client.get(path, params=fields)
            body = reply.json()
        except (httpx.HTTPError, ValueError) as error:
            raise LabError(f"--prometheus {self.url}: {error or type(error).__name__}") from error
        if body.get("status") != "success":
            raise LabError(f"--prometheus {self.url}: {body.get('error', reply.status_code)}: {fields}")
        return body["data"]


def rate_interval_s(scrape_s: float, step_s: float) -> float:
    """Grafana's `$__rate_interval`: four scrapes, and never less than a step and a scrape."""
    return max(SCRAPES_A_RATE * scrape_s, step_s + scrape_s)


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def seconds(duration: str) -> float:
    """Parse Prometheus' duration of whole units, as in `1m30s` or `500ms`.

    Raises:
        ValueError: it is none, or of no length.
    """
    length_s = sum(float(count) * UNITS_S[unit] for count, unit in DURATION.findall(duration))
    if not re.fullmatch(rf"({DURATION.pattern})+", duration) or length_s == 0:
        raise ValueError(f"{duration!r} is no duration such as 15m or 1h30m")
    return length_s
