"""The `make-draft` command: options. The work is done in `sglang_layered_lab.models.drafts`."""

from pathlib import Path

import click


@click.command("make-draft")
@click.option(
    "--kind",
    type=click.Choice(("standalone", "eagle", "eagle3", "mtp", "mtp-layers")),
    required=True,
    help="What --speculative-algorithm takes it for; mtp: a whole model with one layer more, for EAGLE;"
    " mtp-layers: three of MiMo-V2's, for EAGLE and --enable-multi-layer-eagle.",
)
@click.option(
    "--target",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    required=True,
    help="A model of make-model --draftable.",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write.")
@click.option("--force", is_flag=True, help="Replace a draft that this command made in --out.")
def make_draft(kind: str, target: Path, out: Path, force: bool) -> None:
    """Write a draft for speculative decoding that is right about every other time."""
    from sglang_layered_lab.models.drafts import make_draft as make

    made = make(kind, target, out, force=force)
    click.echo(f"{out}: {kind} for {target}, {'made' if made else 'already there'}")
