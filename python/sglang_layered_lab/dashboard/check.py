"""Which queries of the dashboard, and which rules, have no data in a Prometheus.

An alert that does not fire has no result, so for alerts every series that they read is looked up instead.
That each fires under a fault is proved by promtool on made-up series (test/monitoring/alerts/).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from sglang_layered_lab.dashboard.model import METRIC_NAME, Choice, Query, Row, Source, all_queries
from sglang_layered_lab.dashboard.prometheus import Prometheus, Window, rate_interval_s

_MATCHERS = r"(?:\{[^{}]*\})?"
_SELECTOR = re.compile(METRIC_NAME.pattern + _MATCHERS)


@dataclass(frozen=True, slots=True)
class Finding:
    """One query or rule that was looked at; `problem` is None where it has data."""

    where: str
    expr: str
    needs: frozenset[Source]
    problem: str | None

    def counts(self, optional: Iterable[Source]) -> bool:
        """Whether this is a failure, when what is `optional` may be without data."""
        allowed = set(optional)
        if "layered" in allowed:
            allowed |= {"learns", "paces"}  # what policies of layered mode can
        return self.problem is not None and not self.needs & allowed


def check(prometheus: Prometheus, rows: tuple[Row, ...], choice: Choice, window: Window) -> Iterator[Finding]:
    """Evaluate every query over the window, then every loaded rule."""
    rate_s = rate_interval_s(prometheus.scrape_interval_s(), window.step_s)
    for row, panel, query in all_queries(rows):
        expr = choice.filled(query.expr, rate_s)
        problem = None if prometheus.lines(expr, window) else "no data"
        yield Finding(f"{row.title} / {panel.title}", expr, frozenset(query.sources()), problem)
    yield from _check_rules(prometheus, window)


def _check_rules(prometheus: Prometheus, window: Window) -> Iterator[Finding]:
    rules = prometheus.rules()
    if not rules:
        yield Finding("rules", "", frozenset(), "none loaded; add recording.yml and alerts.yml to rule_files")
    for rule in rules:
        problem = rule.get("lastError") or None
        if rule["health"] != "ok":
            problem = problem or f"health is {rule['health']}: not evaluated yet"
        if problem is None and rule["type"] == "recording":
            problem = None if prometheus.lines(rule["name"], window) else "no data"
        elif problem is None:
            missing = [name for name in selectors(rule["query"]) if not prometheus.lines(name, window)]
            problem = f"no data for {', '.join(missing)}" if missing else None
        needs = frozenset(Query(rule["query"], "").sources() | Query(rule["name"], "").sources())
        yield Finding(f"{rule['type']} rule {rule['name']}", rule["query"], needs, problem)


def selectors(expr: str) -> list[str]:
    """Series selectors of a PromQL expression, once each, in order of appearance."""
    return list(dict.fromkeys(found.group() for found in _SELECTOR.finditer(expr)))
