"""Which queries of the dashboard, and which rules, have no data in a Prometheus.

An alert that does not fire has no result, so for alerts every series that they read is looked up instead.
That each fires under a fault is proved by promtool on made-up series (test/monitoring/alerts/).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from sglang_layered_lab.dashboard.definition import Choice, Row, Source, all_queries, selectors, sources
from sglang_layered_lab.dashboard.prometheus import Prometheus, Window, rate_interval_s


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
        problem = None if prometheus.has_data(expr, window) else "no data"
        yield Finding(f"{row.title} / {panel.title}", expr, frozenset(sources(expr)), problem)
    rules = prometheus.rules()
    if not rules:
        yield Finding("rules", "", frozenset(), "none loaded; add recording.yml and alerts.yml to rule_files")
    for rule in rules:
        needs = frozenset(sources(rule["query"]) | sources(rule["name"]))
        where = f"{rule['type']} rule {rule['name']}"
        yield Finding(where, rule["query"], needs, _problem(prometheus, rule, window))


def _problem(prometheus: Prometheus, rule: dict[str, Any], window: Window) -> str | None:
    if rule.get("lastError"):
        return str(rule["lastError"])
    if rule["health"] != "ok":
        return f"health is {rule['health']}: not evaluated yet"
    if rule["type"] == "recording":
        return None if prometheus.has_data(rule["name"], window) else "no data"
    missing = [name for name in selectors(rule["query"]) if not prometheus.has_data(name, window)]
    return f"no data for {', '.join(missing)}" if missing else None
