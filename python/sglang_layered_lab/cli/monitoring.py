"""`sglang-layered monitoring`: writes out docker/monitoring, which the wheel has, or draws its dashboard."""

import re
import time
from collections.abc import Iterator
from functools import partial
from importlib.resources import files
from pathlib import Path

import click

from sglang_layered.cli.groups import WholeGroup
from sglang_layered.errors import ConfigError, LabError
from sglang_layered.files import check_output
from sglang_layered_lab.cli.bench_report import page_option

SCRAPED = ("server", "router", "alertmanager")
RULES = ("recording", "alerts")
DASHBOARD = "grafana/dashboards/layered.json"


@click.group(cls=WholeGroup)
def monitoring() -> None:
    """Write the files of Prometheus, Alertmanager and Grafana, and the dashboard as a page."""


@monitoring.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--target",
    "targets",
    multiple=True,
    metavar="NAME=HOST:PORT",
    help="Address of a server, router or alertmanager, in place of a lookup of that name; may be repeated.",
)
@click.option("--force", is_flag=True, help="Also replace files that differ.")
def write(folder: Path, targets: tuple[str, ...], force: bool) -> None:
    """Write configuration, rules, alerts and dashboard to FOLDER.

    Prometheus then looks up the names server, router and alertmanager, as docker/compose.yaml has them;
    --target gives addresses instead. Write the files again after an upgrade: they go with its metrics.
    """
    texts = {path.relative_to(_root()): path.read_text() for path in _files(_root())}
    config = Path("prometheus/prometheus.yml")
    texts[config] = with_targets(texts[config], targets)
    differing = [
        str(folder / name)
        for name, text in texts.items()
        if (folder / name).exists() and (folder / name).read_text() != text
    ]
    if differing and not force:
        raise ConfigError(f"{', '.join(differing)}: there, and different; --force replaces what differs")
    for name, text in texts.items():
        check_output(folder / name, "FOLDER")
        (folder / name).write_text(text)
    click.echo(f"wrote {len(texts)} files to {folder}: prometheus/, alertmanager/, grafana/")


@monitoring.command()
def rules() -> None:
    """Print rules and alerts as objects of the Prometheus operator, for `kubectl apply -f -`."""
    for name in RULES:
        click.echo(prometheus_rule(name, (_root() / "prometheus" / f"{name}.yml").read_text()), nl=False)


@monitoring.command()
@click.option("--prometheus", "url", metavar="URL", default="http://127.0.0.1:9090", show_default=True)
@click.option("--range", "span", default="15m", show_default=True, help="How far back, as 15m or 1h30m.")
@page_option(default=Path("dashboard.html"))
@click.option("--instance", default=".*", show_default=True, help="Only these servers.")
@click.option("--model", default=".*", show_default=True, help="Only these models.")
@click.option("--mode", default=".*", show_default=True, help="Only these prefill modes.")
def snapshot(url: str, span: str, out: Path, instance: str, model: str, mode: str) -> None:
    """Write the dashboard, as a Prometheus has it now, to one HTML page that needs no other file.

    The page is drawn without Grafana, from the JSON that Grafana reads. --instance, --model and --mode are
    regular expressions, as Grafana's variables.
    """
    try:
        from sglang_layered_lab.bench.pages import page_path
        from sglang_layered_lab.dashboard.board import read_board
        from sglang_layered_lab.dashboard.definition import Choice
        from sglang_layered_lab.dashboard.prometheus import Prometheus, seconds
        from sglang_layered_lab.dashboard.snapshot import write_snapshot
    except ModuleNotFoundError as error:
        raise LabError(
            f"snapshot needs the package {error.name}: pip install 'sglang-layered[lab]'"
        ) from error
    try:
        range_s = seconds(span)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--range") from error
    check_output(page_path(out))
    board = read_board((_root() / DASHBOARD).read_text(encoding="utf-8"))
    with Prometheus(url) as prometheus:
        path = write_snapshot(prometheus, board, Choice(instance, model, mode), range_s, time.time(), out)
    click.echo(f"wrote {path}")


def with_targets(config: str, targets: tuple[str, ...]) -> str:
    """`prometheus.yml` with addresses, each `NAME=HOST:PORT`, in the place of the lookups of these names.

    Raises:
        ConfigError: another name, or no address.
    """
    addresses: dict[str, list[str]] = {}
    for target in targets:
        name, _, address = target.partition("=")
        if name not in SCRAPED or not re.fullmatch(r"[\w.-]+:\d+|\[[\da-fA-F:]+\]:\d+", address):
            raise ConfigError(f"--target {target}: give NAME=HOST:PORT, NAME one of {', '.join(SCRAPED)}")
        addresses.setdefault(name, []).append(f'"{address}"')
    for name, found in addresses.items():
        lookup = (
            rf"( +(?:- )?)dns_sd_configs:\n +- names: \[{name}\]\n(?: +(?:type|port|refresh_interval): .*\n)+"
        )
        config, replaced = re.subn(lookup, partial(_static, found), config)
        assert replaced == 1, name
    return config


def _static(addresses: list[str], lookup: re.Match[str]) -> str:
    return f"{lookup[1]}static_configs:\n{' ' * (len(lookup[1]) + 2)}- targets: [{', '.join(addresses)}]\n"


def prometheus_rule(name: str, text: str) -> str:
    """Wrap a rule file into a PrometheusRule: its text, indented, is the object's spec."""
    spec = "".join(f"  {line}" if line.strip() else line for line in text.splitlines(keepends=True))
    metadata = f"{{name: layered-{name}, labels: {{app.kubernetes.io/part-of: sglang-layered}}}}"
    head = f"apiVersion: monitoring.coreos.com/v1\nkind: PrometheusRule\nmetadata: {metadata}\nspec:\n"
    return f"---\n{head}{spec}"


def _root() -> Path:
    return Path(str(files("sglang_layered_monitoring")))


def _files(folder: Path) -> Iterator[Path]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return (path for path in sorted(found) if path.suffix not in (".py", ".pyc"))
