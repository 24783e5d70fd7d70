"""`sglang-layered dashboard`: options only. Nothing here knows a query or a colour."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from sglang_layered.errors import MonitoringError
from sglang_layered.writable import check_writable
from sglang_layered_lab.dashboard.definition import ROWS, TITLE
from sglang_layered_lab.dashboard.model import SOURCES, Choice, Source
from sglang_layered_lab.dashboard.prometheus import Prometheus, Window

JSON_PATH = Path("docker/monitoring/grafana/dashboards/layered.json")
MAX_POINTS = 240


@click.group()
def dashboard() -> None:
    """Write, draw or check the Grafana dashboard."""


def _prometheus_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--mode", default=".*", show_default=True, help="Only these prefill modes."),
        click.option("--model", default=".*", show_default=True, help="Only these models."),
        click.option("--instance", default=".*", show_default=True, help="Only these servers."),
        click.option(
            "--minutes", type=click.FloatRange(min=0, min_open=True), default=15.0, show_default=True
        ),
        click.option("--prometheus", "url", default="http://127.0.0.1:9090", show_default=True),
    ):
        command = option(command)
    return command


def _window(minutes: float) -> Window:
    now_s = time.time()
    return Window(now_s - 60 * minutes, now_s, max(1.0, round(60 * minutes / MAX_POINTS)))


@dashboard.command()
@click.option("--out", type=click.Path(path_type=Path), default=JSON_PATH, show_default=True)
def write(out: Path) -> None:
    """Write the dashboard as Grafana JSON."""
    try:
        from sglang_layered_lab.dashboard.grafana import dashboard_json
    except ModuleNotFoundError as error:
        raise MonitoringError(f"{error.name} is missing; install sglang-layered[lab]") from error
    check_writable(out)
    out.write_text(dashboard_json(TITLE, ROWS))
    click.echo(f"wrote {out}")


@dashboard.command()
@_prometheus_options
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The PNG to write.")
@click.option(
    "--rate-seconds",
    type=click.FloatRange(min=0, min_open=True),
    help="Window of rates. [default: Grafana's]",
)
def render(
    url: str, minutes: float, instance: str, model: str, mode: str, out: Path, rate_seconds: float | None
) -> None:
    """Draw every panel from the last MINUTES of a Prometheus as one picture.

    `--instance`, `--model` and `--mode` are regular expressions.
    """
    try:
        from sglang_layered_lab.dashboard.render import draw
    except ModuleNotFoundError as error:
        raise MonitoringError(f"{error.name} is missing; install sglang-layered[lab]") from error
    check_writable(out)
    with Prometheus(url) as prometheus:
        choice = Choice(instance, model, mode)
        empty = draw(prometheus, TITLE, ROWS, choice, _window(minutes), out, rate_seconds)
    click.echo(f"wrote {out}" + (f"; no data for: {', '.join(empty)}" if empty else ""))


@dashboard.command()
@_prometheus_options
@click.option(
    "--optional",
    "optional",
    type=click.Choice([name for name in SOURCES if name != "any"]),
    multiple=True,
    default=("router",),
    show_default=True,
    help="What may be without data, for it is not switched on; may be repeated.",
)
def check(
    url: str, minutes: float, instance: str, model: str, mode: str, optional: tuple[Source, ...]
) -> None:
    """Evaluate every query and rule over the last MINUTES; list those without data and exit with 1."""
    from sglang_layered_lab.dashboard.check import check as look

    with Prometheus(url) as prometheus:
        findings = list(look(prometheus, ROWS, Choice(instance, model, mode), _window(minutes)))
    failures = [finding for finding in findings if finding.counts(optional)]
    for finding in findings:
        if finding.problem is not None:
            word = "FAIL" if finding in failures else "skip"
            click.echo(f"{word}  {finding.where}: {finding.problem}\n      {finding.expr}")
    num_good = sum(finding.problem is None for finding in findings)
    click.echo(f"{num_good} of {len(findings)} queries and rules have data, {len(failures)} fail")
    if failures:
        sys.exit(1)
