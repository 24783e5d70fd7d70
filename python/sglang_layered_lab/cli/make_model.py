"""The `make-model` command: options and a progress bar. The work is done in `sglang_layered.models`."""

import time
from pathlib import Path

import click

from sglang_layered_lab.models.catalogue import ARCHS, PRESET_NAMES, Recipe, find_recipe
from sglang_layered_lab.models.make import make_from_recipe, num_bytes_of, num_parameters_of
from sglang_layered_lab.models.recipe import DTYPE_BYTES, QUANTIZATIONS


@click.command("make-model")
@click.option("--arch", type=click.Choice(ARCHS), required=True, help="Model family.")
@click.option("--preset", type=click.Choice(PRESET_NAMES), default="tiny", show_default=True, help="Size.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the weights.")
@click.option(
    "--dtype", type=click.Choice(list(DTYPE_BYTES)), help="Default: float32 for tiny, bfloat16 for demo."
)
@click.option(
    "--layers", "num_layers", type=click.IntRange(min=1), help="Number of layers, instead of the preset's."
)
@click.option(
    "--quantization",
    type=click.Choice(QUANTIZATIONS),
    help="Store the weights of the layers as published checkpoints of this method do.",
)
@click.option(
    "--dequantized", is_flag=True, help="Plain floats, rounded as --quantization rounds: the same model."
)
@click.option("--draftable", is_flag=True, help="Tokens that a draft of make-draft can guess.")
@click.option("--force", is_flag=True, help="Replace a model that this command made in --out.")
def make_model(
    arch: str,
    preset: str,
    out: Path,
    seed: int,
    dtype: str | None,
    num_layers: int | None,
    quantization: str | None,
    dequantized: bool,
    draftable: bool,
    force: bool,
) -> None:
    """Write a model with random weights, a tokenizer and a chat template, to serve without a download."""
    recipe = find_recipe(
        arch,
        preset,
        seed=seed,
        dtype=dtype,
        num_layers=num_layers,
        quantization=quantization,
        dequantized=dequantized,
        draftable=draftable,
    )
    started_s = time.monotonic()
    made = _make_with_progress(recipe, out, force)
    elapsed_s = time.monotonic() - started_s
    size = f"{num_parameters_of(recipe) / 1e6:,.1f} M parameters, {num_bytes_of(recipe) / 1e6:,.0f} MB"
    click.echo(f"{out}: {size}, {f'made in {elapsed_s:.1f} s' if made else 'already there'}")


def _make_with_progress(recipe: Recipe, out: Path, force: bool) -> bool:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("weights"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("weights", total=num_bytes_of(recipe))
        return make_from_recipe(
            recipe, out, force=force, on_progress=lambda num_bytes: progress.advance(task, num_bytes)
        )
