"""`scripts/gpu/make_bundle`: reads options, calls `bundle`, prints what was packed."""

from __future__ import annotations

from pathlib import Path

import click

from bundle import (
    BundleSpec,
    Member,
    as_bytes,
    dry_run,
    listing,
    make_members,
    parse_extra,
    split,
    write_bundle,
)
from sglang_layered.errors import LabError
from wheels import Wheel, carried_wheels


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write the bundle to.")
@click.option(
    "--wheels", type=click.Path(path_type=Path), help="Folder to download to and reuse; default: OUT/wheels."
)
@click.option(
    "--max-mib", type=click.FloatRange(min=1), default=48, show_default=True, help="Largest archive, in MiB."
)
@click.option("--python-version", default="3.12", show_default=True, help="Python of the GPU host.")
@click.option("--add", multiple=True, metavar="NAME==VERSION", help="One more wheel; may be repeated.")
@click.option("--extra", multiple=True, metavar="FOLDER:PLACE", help="A folder to carry to TARGET/PLACE.")
@click.option("--dry-run", "is_dry", is_flag=True, help="List what would be packed; fetch and write nothing.")
@click.option(
    "--repository", type=click.Path(path_type=Path, exists=True), default=Path("."), help="This checkout."
)
def main(
    out: Path,
    wheels: Path | None,
    max_mib: float,
    python_version: str,
    add: tuple[str, ...],
    extra: tuple[str, ...],
    is_dry: bool,
    repository: Path,
) -> None:
    """Pack SGLang, this project and what both need into archives for a host that reaches no registry."""
    try:
        spec = BundleSpec(
            repository,
            (*carried_wheels(), *map(Wheel.parse, add)),
            tuple(map(parse_extra, extra)),
            python_version,
            int(max_mib * 2**20),
        )
        folder = wheels or out / "wheels"
        members = dry_run(spec, folder) if is_dry else make_members(spec, folder, _work_folder(out))
        click.echo(listing(members))
        archives = split(members, spec.max_bytes)
        if not is_dry:
            write_bundle(archives, out, repository / "scripts" / "gpu" / "install.sh")
        click.echo(_summary(members, archives, is_dry))
    except LabError as error:
        raise click.ClickException(str(error)) from error


def _work_folder(out: Path) -> Path:
    work = out / "members"
    for place in ("trees", "stubs"):
        for path in (work / place).rglob("*"):
            if path.is_file():
                path.unlink()
    return work


def _summary(members: list[Member], archives: list[list[Member]], is_dry: bool) -> str:
    sizes = ", ".join(f"{as_bytes(each) / 2**20:.1f} MiB" for each in archives)
    done = "would be packed" if is_dry else "packed"
    about = "about " if any(member.is_estimate for member in members) else ""
    return f"{len(members)} files {done} into {len(archives)} archives of {about}{sizes}"


if __name__ == "__main__":
    main()
