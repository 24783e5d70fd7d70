"""Asks a Prometheus through its HTTP API (`/api/v1`): whether a query has data, and its loaded rules."""

import math
import re
from dataclasses import dataclass
from typing import Any

import httpx

from sglang_layered.errors import LabError

TIMEOUT_S = 30.0
SCRAPES_A_RATE = 4  # a rate needs two scrapes; four survive a missed one, as in Grafana's $__rate_interval
UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of time and its resolution, in seconds; `start_s` and `end_s` are Unix times."""

    start_s: float
    end_s: float
    step_s: float


class Prometheus:
    """Client of one Prometheus server, a context manager.

    Raises:
        LabError: from every method, with the server's own words, where it refuses or is not there.
    """

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        self._client = httpx.Client(base_url=f"{self._url}/api/v1", timeout=TIMEOUT_S, trust_env=False)

    def __enter__(self) -> "Prometheus":
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def has_data(self, expr: str, window: Window) -> bool:
        """Whether `expr` has a finite value somewhere in the window."""
        span = {"start": window.start_s, "end": window.end_s, "step": window.step_s}
        found = self._ask("/query_range", {"query": expr, **span})["result"]
        return any(math.isfinite(float(value)) for series in found for _, value in series["values"])

    def rules(self) -> list[dict[str, Any]]:
        """All loaded rules as the API describes them: name, query, type, health, lastError."""
        return [rule for group in self._ask("/rules")["groups"] for rule in group["rules"]]

    def scrape_interval_s(self) -> float:
        """Return the longest interval at which a target is scraped; without a target LabError."""
        targets = self._ask("/targets", {"state": "active"})["activeTargets"]
        if not targets:
            raise LabError(f"--prometheus {self._url}: scrapes no target; see its page /targets")
        return max(_seconds(target["scrapeInterval"]) for target in targets)

    def _ask(self, path: str, fields: dict[str, Any] | None = None) -> Any:
        try:
            reply = self._client.get(path, params=fields)
            body = reply.json()
        except (httpx.HTTPError, ValueError) as error:
            raise LabError(f"--prometheus {self._url}: {error or type(error).__name__}") from error
        if body.get("status") != "success":
            raise LabError(f"--prometheus {self._url}: {body.get('error', reply.status_code)}: {fields}")
        return body["data"]


def rate_interval_s(scrape_s: float, step_s: float) -> float:
    """Grafana's `$__rate_interval`: four scrapes, and never less than a step and a scrape."""
    return max(SCRAPES_A_RATE * scrape_s, step_s + scrape_s)


def _seconds(duration: str) -> float:
    """Parse Prometheus' duration of whole units, as in `1m30s` or `500ms`."""
    return sum(float(count) * UNITS_S[unit] for count, unit in re.findall(r"(\d+)(ms|s|m|h|d)", duration))
