"""`sglang-layered patch`: the command line of the patch tool; knows options and wording, not patches."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from sglang_layered import patching
from sglang_layered.errors import PatchError
from sglang_layered.patching.maintain import lint as find_problems
from sglang_layered.patching.maintain import refresh as refresh_manifest
from sglang_layered.patching.manifest import default_root, set_folder, supported_versions
from sglang_layered.patching.port import ORDER, PortReport, write_symbols
from sglang_layered.patching.port import port as compare

Command = Callable[..., Any]


def where_options(command: Command) -> Command:
    """Let a command choose which installed SGLang it works on."""
    python = click.option(
        "--python", type=click.Path(path_type=Path), help="Work on the SGLang of this interpreter."
    )
    site = click.option(
        "--site", type=click.Path(path_type=Path), help="Work on the SGLang in this site-packages folder."
    )
    return python(site(command))


@click.group()
@click.option("--patches", type=click.Path(path_type=Path), hidden=True, help="Folder with the patch sets.")
@click.pass_context
def patch(context: click.Context, patches: Path | None) -> None:
    """Apply, revert, inspect or verify the patch set of an installed SGLang."""
    context.obj = patches or default_root()


@patch.command()
@where_options
@click.pass_obj
def apply(root: Path, python: Path | None, site: Path | None) -> None:
    """Insert the seams; does nothing when they are in."""
    place = patching.locate(python=python, site=site)
    written = patching.apply(place, root)
    done = f"patched {len(written)} files" if written else "already patched"
    click.echo(f"SGLang {place.version} in {place.package}: {done}")


@patch.command()
@where_options
@click.pass_obj
def revert(root: Path, python: Path | None, site: Path | None) -> None:
    """Take the seams out; every file is then as its installer wrote it."""
    place = patching.locate(python=python, site=site)
    written = patching.revert(place, root)
    done = f"reverted {len(written)} files" if written else "already pristine"
    click.echo(f"SGLang {place.version} in {place.package}: {done}")


@patch.command()
@where_options
@click.pass_obj
def verify(root: Path, python: Path | None, site: Path | None) -> None:
    """Prove by hash that the seams are in; exit status 1 when they are not."""
    place = patching.locate(python=python, site=site)
    manifest = patching.verify(place, root)
    click.echo(
        f"SGLang {place.version} in {place.package}: patched, {len(manifest.files)} files verified by hash"
    )


@patch.command()
@where_options
@click.pass_obj
def status(root: Path, python: Path | None, site: Path | None) -> None:
    """Say which patches are applied, fit or do not fit; works for any SGLang and writes nothing."""
    report = patching.status(patching.locate(python=python, site=site), root)
    click.echo(f"SGLang {report.site.version} in {report.site.package}")
    if not report.supported:
        click.echo(f"No patch set for this version; compared with the one for {report.set_version}.")
    width = max((len(entry.name) for entry in report.patches), default=0)
    for entry in report.patches:
        click.echo(f"{entry.name:<{width}}  {entry.text}")


@patch.command(hidden=True)
@click.pass_obj
def lint(root: Path) -> None:
    """Check the patch sets themselves; needs no SGLang."""
    problems = find_problems(root)
    if problems:
        raise PatchError("\n  ".join(["the patch set is not sound:", *problems]))
    click.echo(f"{root}: the patch set is sound")


@patch.command()
@click.option(
    "--site", type=click.Path(path_type=Path), required=True, help="A pristine site-packages folder."
)
@click.pass_obj
def refresh(root: Path, site: Path) -> None:
    """Recompute manifest.json from a pristine SGLang."""
    click.echo(f"wrote {refresh_manifest(patching.locate(site=site), root)}")


@patch.command()
@click.option(
    "--site", type=click.Path(path_type=Path), required=True, help="A folder with an unpacked SGLang."
)
@click.option("--base", help="The release that we are built on; default: the newest with a patch set.")
@click.option("--keep", is_flag=True, help="Make its symbols those of its own patch set, and say no more.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON, also what is the same.")
@click.pass_obj
def port(root: Path, site: Path, base: str | None, keep: bool, as_json: bool) -> None:
    """Say what of another SGLang is the same, changed or gone; exit status 1 unless all is the same.

    Parses it and imports nothing. docs/porting.md goes on from there.
    """
    place = patching.locate(site=site)
    if keep:
        click.echo(f"wrote {write_symbols(place, set_folder(root, place.version))}")
        return
    report = compare(place, root, base or supported_versions(root)[-1])
    if as_json:
        click.echo(json.dumps(asdict(report), indent=1))
    else:
        _print_port(report)
    raise SystemExit(0 if report.is_same else 1)


def _print_port(report: PortReport) -> None:
    click.echo(f"SGLang {report.version} against {report.base}, on which this package is built")
    for entry in report.symbols:
        if entry.change != "same":
            change = f"moved to {entry.where}" if entry.where else entry.change
            more = f" and {len(entry.places) - 1} more" if len(entry.places) > 1 else ""
            click.echo(f"{change:<18} {entry.symbol}  in {entry.places[0]}{more}")
    counts = Counter(entry.change for entry in report.symbols)
    click.echo(", ".join(f"{counts[change]} {change}" for change in ORDER if counts[change]) + " symbols")
    for patch_entry in report.patches:
        click.echo(f"{patch_entry.name}  {patch_entry.text}")
