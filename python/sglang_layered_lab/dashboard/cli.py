"""`sglang-layered dashboard`: options only. Nothing here knows a query."""

import sys
import time
from pathlib import Path

import click

from sglang_layered.cli.groups import WholeGroup
from sglang_layered.errors import LabError
from sglang_layered.files import check_output
from sglang_layered_lab.dashboard.check import check as look
from sglang_layered_lab.dashboard.definition import ROWS, SOURCES, TITLE, Choice, Source
from sglang_layered_lab.dashboard.prometheus import Prometheus, Window

JSON_PATH = Path("docker/monitoring/grafana/dashboards/layered.json")
MAX_POINTS = 240


@click.group(cls=WholeGroup)
def dashboard() -> None:
    """Write or check the Grafana dashboard."""


@dashboard.command()
@click.option("--out", type=click.Path(path_type=Path), default=JSON_PATH, show_default=True)
def write(out: Path) -> None:
    """Write the dashboard as Grafana JSON."""
    try:
        from sglang_layered_lab.dashboard.grafana import dashboard_json
    except ModuleNotFoundError as error:
        raise LabError(f"{error.name} is missing; install sglang-layered[lab]") from error
    check_output(out)
    out.write_text(dashboard_json(TITLE, ROWS))
    click.echo(f"wrote {out}")


@dashboard.command()
@click.option("--prometheus", "url", default="http://127.0.0.1:9090", show_default=True)
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), default=15.0, show_default=True)
@click.option("--instance", default=".*", show_default=True, help="Only these servers.")
@click.option("--model", default=".*", show_default=True, help="Only these models.")
@click.option("--mode", default=".*", show_default=True, help="Only these prefill modes.")
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
    now_s, span_s = time.time(), 60 * minutes
    window = Window(now_s - span_s, now_s, max(1.0, round(span_s / MAX_POINTS)))
    with Prometheus(url) as prometheus:
        findings = list(look(prometheus, ROWS, Choice(instance, model, mode), window))
    failures = [finding for finding in findings if finding.counts(optional)]
    for finding in findings:
        if finding.problem is not None:
            word = "FAIL" if finding in failures else "skip"
            click.echo(f"{word}  {finding.where}: {finding.problem}\n      {finding.expr}")
    num_good = sum(finding.problem is None for finding in findings)
    click.echo(f"{num_good} of {len(findings)} queries and rules have data, {len(failures)} fail")
    if failures:
        sys.exit(1)
