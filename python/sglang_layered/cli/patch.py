"""`sglang-layered patch`: the command line of the patch tool; knows options and wording, not patches."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from functools import partial, wraps
from pathlib import Path
from typing import Any

import click

import sglang_layered.patching.port as porting
from sglang_layered import patching
from sglang_layered.cli.groups import WholeGroup
from sglang_layered.patching import patch_set
from sglang_layered.patching.site import Site

Command = Callable[..., Any]
path_option = partial(click.option, type=click.Path(path_type=Path))


def on_site(command: Command) -> Command:
    """Let a command choose which installed SGLang it works on; it is given the patch sets and the Site."""

    @path_option("--python", help="Work on the SGLang of this interpreter.")
    @path_option("--site", help="Work on the SGLang in this site-packages folder.")
    @click.pass_obj
    @wraps(command)
    def located(root: Path, python: Path | None, site: Path | None) -> None:
        place = patching.locate(python=python, site=site)
        words = command(root, place)
        click.echo(f"SGLang {place.version} in {place.package}{words}")

    return located


@click.group(cls=WholeGroup)
@path_option("--patches", hidden=True, help="Folder with the patch sets.")
@click.pass_context
def patch(context: click.Context, patches: Path | None) -> None:
    """Apply, revert, inspect or verify the patch set of an installed SGLang."""
    context.obj = patches or patch_set.default_root()


@patch.command()
@on_site
def apply(root: Path, site: Site) -> str:
    """Insert the seams; does nothing when they are in."""
    written = patching.apply(site, root)
    return f": patched {len(written)} files" if written else ": already patched"


@patch.command()
@on_site
def revert(root: Path, site: Site) -> str:
    """Take the seams out; every file is then as its installer wrote it."""
    written = patching.revert(site, root)
    return f": reverted {len(written)} files" if written else ": already pristine"


@patch.command()
@on_site
def verify(root: Path, site: Site) -> str:
    """Prove by hash that the seams are in; exit status 1 when they are not."""
    return f": patched, {len(patching.verify(site, root).files)} files verified by hash"


@patch.command()
@on_site
def status(root: Path, site: Site) -> str:
    """Say which patches are applied, fit or do not fit; works for any SGLang and writes nothing."""
    report = patching.status(site, root)
    lines = [""]
    if report.set_version != site.version:
        lines.append(f"No patch set for this version; compared with the one for {report.set_version}.")
    width = max((len(entry.name) for entry in report.patches), default=0)
    return "\n".join([*lines, *(f"{entry.name:<{width}}  {entry.text}" for entry in report.patches)])


@patch.command()
@path_option("--site", required=True, help="A folder with an unpacked SGLang.")
@click.option(
    "--base", help="Compare with this release; default: itself, or the newest, by their patch sets."
)
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON, also what is the same.")
@click.pass_obj
def port(root: Path, site: Path, base: str | None, as_json: bool) -> None:
    """Say what of another SGLang is the same, changed or gone; exit status 1 unless all is the same.

    Parses it and imports nothing. docs/porting.md goes on from there.
    """
    place = patching.locate(site=site)
    report = porting.port(place, root, base or porting.base_of(root, place.version))
    click.echo(json.dumps(asdict(report), indent=1) if as_json else _text_of(report))
    raise SystemExit(0 if report.is_same else 1)


def _text_of(report: porting.PortReport) -> str:
    lines = [f"SGLang {report.version} against {report.base}, on which this package is built"]
    for entry in report.symbols:
        if entry.change in porting.FOUND:
            more = f" and {len(entry.places) - 1} more" if len(entry.places) > 1 else ""
            moved = f", now in {entry.where}" if entry.where else ""
            lines.append(f"{entry.change:<18} {entry.symbol}{moved}  for {entry.places[0]}{more}")
            lines += [f"{'':<18} {entry.why}"] if entry.why else []
    counts = Counter(entry.change for entry in report.symbols)
    lines.append(
        ", ".join(f"{counts[change]} {change}" for change in porting.ORDER if counts[change]) + " symbols"
    )
    return "\n".join([*lines, *(f"{entry.name}  {entry.text}" for entry in report.patches)])
