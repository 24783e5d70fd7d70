"""`sglang-layered report`, also `bench report`, and `bench plot`: options and what was written."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from sglang_layered_lab.bench.pictures import Format

PICTURES = "pictures"

folders_argument = click.argument(
    "folders", metavar="FOLDER...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
baseline_option = click.option(
    "--baseline", metavar="ARM", help="Compare with this arm.  [default: the first]"
)
# Where a command writes the one page that it makes; a default goes with it.
page_option = partial(
    click.option,
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    show_default=True,
    help="The page; or a folder, which gets it as index.html.",
)


@click.command()
@folders_argument
@click.option("--out", type=click.Path(path_type=Path), help="Folder for all.  [default: FOLDER/pictures]")
@click.option("--format", "form", type=click.Choice(["png", "svg", "pdf"]), default="png", show_default=True)
@baseline_option
def plot(folders: tuple[Path, ...], out: Path | None, form: "Format", baseline: str | None) -> None:
    """Draw the sweeps in these FOLDERs: TTFT against TBT, tokens over time, expert bytes, and what there is.

    Pictures that have no data are named with the reason.
    """
    from sglang_layered.files import check_output
    from sglang_layered_lab.bench.pictures import Missing, all_pictures
    from sglang_layered_lab.bench.report import read_all
    from sglang_layered_lab.bench.sweep_compare import baseline_of

    results = read_all(folders, baseline)
    for folder in folders:
        check_output((out or folder / PICTURES) / "any")
    for folder, result in zip(folders, results, strict=True):
        for picture in all_pictures(result, baseline_of(result, baseline)):
            if isinstance(picture, Missing):
                click.echo(f"{result.name}: no picture of {picture.title!r}: {picture.why}")
            else:
                click.echo(f"wrote {picture.save(out or folder / PICTURES, form)}")


@click.command()
@click.argument(
    "records", metavar="RECORD...", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True)
)
@page_option(default=Path("report.html"))
@baseline_option
def report(records: tuple[Path, ...], out: Path, baseline: str | None) -> None:
    """Write one HTML page of these RECORDs that needs no other file: pictures, tables, losses shown.

    A RECORD is the folder of a sweep or of the quickstart, or a record of `bench run`; records are compared
    with each other.
    """
    from sglang_layered.files import check_output
    from sglang_layered_lab.bench.pages import page_path
    from sglang_layered_lab.bench.report import write_report

    check_output(page_path(out))
    click.echo(f"wrote {write_report(records, out, baseline=baseline)}")
