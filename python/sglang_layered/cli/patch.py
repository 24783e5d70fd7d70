"""`sglang-layered patch`: the command line of the patch tool; knows options and wording, not patches."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from sglang_layered import patching
from sglang_layered.errors import PatchError
from sglang_layered.patching.maintain import lint as find_problems
from sglang_layered.patching.maintain import refresh as refresh_manifest
from sglang_layered.patching.manifest import default_root

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


@patch.command(hidden=True)
@click.option(
    "--site", type=click.Path(path_type=Path), required=True, help="A pristine site-packages folder."
)
@click.pass_obj
def refresh(root: Path, site: Path) -> None:
    """Recompute manifest.json from a pristine SGLang."""
    click.echo(f"wrote {refresh_manifest(patching.locate(site=site), root)}")
