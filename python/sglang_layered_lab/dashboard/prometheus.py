"""Reads a Prometheus through its HTTP API (`/api/v1`): range queries, and the rules that it has loaded."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import httpx

from sglang_layered.errors import MonitoringError

TIMEOUT_S = 30.0
SCRAPES_A_RATE = 4  # a rate needs two scrapes; four survive a missed one, as in Grafana's $__rate_interval


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of time and its resolution, in seconds; `start_s` and `end_s` are Unix times."""

    start_s: float
    end_s: float
    step_s: float


@dataclass(frozen=True, slots=True)
class Line:
    """One series of a range query: its labels, and its finite values by Unix time in seconds."""

    labels: dict[str, str]
    times_s: tuple[float, ...]
    values: tuple[float, ...]


class Prometheus:
    """Client of one Prometheus server; a refused query raises MonitoringError with the server's own words."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        self._client = httpx.Client(base_url=f"{self._url}/api/v1", timeout=TIMEOUT_S, trust_env=False)

    def __enter__(self) -> Prometheus:
        """Use the connection in a `with` block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connection."""
        self._client.close()

    def lines(self, expr: str, window: Window) -> list[Line]:
        """Evaluate `expr` over a window; series without a finite value are left out."""
        data = self._ask(
            "/query_range",
            {"query": expr, "start": window.start_s, "end": window.end_s, "step": window.step_s},
        )
        found = []
        for series in data["result"]:
            points = [(float(time_s), float(value)) for time_s, value in series["values"]]
            points = [(time_s, value) for time_s, value in points if math.isfinite(value)]
            if points:
                times_s, values = zip(*points, strict=True)
                found.append(Line(series["metric"], times_s, values))
        return found

    def rules(self) -> list[dict[str, Any]]:
        """All loaded rules as the API describes them: name, query, type, health, lastError."""
        return [rule for group in self._ask("/rules")["groups"] for rule in group["rules"]]

    def scrape_interval_s(self) -> float:
        """Return the longest interval at which a target is scraped; without a target MonitoringError."""
        targets = self._ask("/targets", {"state": "active"})["activeTargets"]
        if not targets:
            raise MonitoringError(f"--prometheus {self._url}: scrapes no target; see its page /targets")
        return max(_seconds(target["scrapeInterval"]) for target in targets)

    def _ask(self, path: str, fields: dict[str, Any] | None = None) -> Any:
        try:
            reply = self._client.get(path, params=fields)
            body = reply.json()
        except (httpx.HTTPError, ValueError) as error:
            raise MonitoringError(f"--prometheus {self._url}: {error or type(error).__name__}") from error
        if body.get("status") != "success":
            raise MonitoringError(
                f"--prometheus {self._url}: {body.get('error', reply.status_code)}: {fields}"
            )
        return body["data"]


def rate_interval_s(scrape_s: float, step_s: float) -> float:
    """Grafana's `$__rate_interval`: four scrapes, and never less than a step and a scrape."""
    return max(SCRAPES_A_RATE * scrape_s, step_s + scrape_s)


def _seconds(duration: str) -> float:
    """Parse Prometheus' duration of whole units, as in `1m30s` or `500ms`."""
    units_s = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
    return sum(float(count) * units_s[unit] for count, unit in re.findall(r"(\d+)(ms|s|m|h|d)", duration))
