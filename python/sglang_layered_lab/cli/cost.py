"""`sglang-layered cost`: fit the step-time model to sweeps, and predict with it. Measures nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console

from sglang_layered.errors import ConfigError
from sglang_layered_lab.cost.coverage import COVERAGES, PAPER_COVERAGE
from sglang_layered_lab.cost.devices import DEVICES, scaled
from sglang_layered_lab.cost.model import StepModel
from sglang_layered_lab.cost.saved import SavedFit, read_fit
from sglang_layered_lab.cost.shape import MODELS, QWEN3_30B_A3B, named
from sglang_layered_lab.cost.ways import Way

if TYPE_CHECKING:
    from sglang_layered_lab.cost.costs import Law

FITTED = "fitted:"
MODEL_HELP = f"{', '.join(MODELS)}, or the path of a config.json."


@click.group()
def cost() -> None:
    """Fit step times to records, and predict prompts by them."""


@cost.command()
@click.argument("folders", metavar="SWEEP...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Write the fit here, for predict.")
@click.option("--model", help=f"{MODEL_HELP}  [default: the records' model]")
@click.option(
    "--coverage", type=click.Choice(list(COVERAGES)), help="Default: as the servers counted it, else uniform."
)
@click.option("--law", type=click.Choice(["max", "sum"]), help="Default: the one that predicts better.")
def fit(
    folders: tuple[Path, ...], out: Path | None, model: str | None, coverage: str | None, law: Law | None
) -> None:
    """Fit the step-time model to the duels in folders of bench sweep.

    A duel is a cell whose prompts come one by one beside streams that decode. Errors of arms, and of
    numbers of decode rows, are those of fits that have not seen them.
    """
    from sglang_layered.writable import check_writable
    from sglang_layered_lab.bench.sweep_result import SweepResult
    from sglang_layered_lab.cost.report import fit_sweeps, write_fit
    from sglang_layered_lab.cost.tables import fit_tables

    if out:
        check_writable(out)
    report = fit_sweeps(
        [SweepResult.read(folder) for folder in folders],
        shape=named(model) if model else None,
        coverage=COVERAGES[coverage] if coverage else None,
        law=law,
    )
    console = _console()
    for table in fit_tables(report):
        console.print(table)
    console.print(
        f"a prompt waits for {report.fit.wait_steps:.2f} decode steps before its first one (median)"
    )
    for line in report.skipped:
        console.print(f"skipped {line}", highlight=False, soft_wrap=True)
    if out:
        write_fit(report, out)
        console.print(f"wrote {out}", highlight=False, soft_wrap=True)


@cost.command()
@click.option(
    "--device",
    default="h200",
    show_default=True,
    help=f"{', '.join(DEVICES)}: physical rates, so lower bounds; {FITTED}FILE: a fit of cost fit.",
)
@click.option("--scale", metavar="FROM:TO", help="Carry a fit from one of these devices to another.")
@click.option("--model", help=f"{MODEL_HELP}  [default: qwen3-30b-a3b; of a fit its own]")
@click.option("--coverage", type=click.Choice(list(COVERAGES)), help="Default: paper; of a fit its own.")
@click.option("--prompt-tokens", default=8192, show_default=True)
@click.option("--decode-rows", multiple=True, type=int, default=(16,), show_default=True)
@click.option("--context-tokens", default=2048, show_default=True, help="That each decode row sees.")
@click.option(
    "--chunk", "chunks", multiple=True, type=int, default=(512, 1024, 2048, 4096), show_default=True
)
@click.option("--groups", multiple=True, type=int, default=(2, 4, 8, 16), show_default=True)
def predict(
    device: str,
    scale: str | None,
    model: str | None,
    coverage: str | None,
    prompt_tokens: int,
    decode_rows: tuple[int, ...],
    context_tokens: int,
    chunks: tuple[int, ...],
    groups: tuple[int, ...],
) -> None:
    """Predict one prompt beside running requests, by every way to schedule it."""
    from sglang_layered_lab.cost.tables import predictions_table
    from sglang_layered_lab.cost.ways import Beside

    saved = _with_choices(_predictor(device, scale), model, coverage)
    rows = []
    for num_rows in decode_rows:
        beside = Beside(num_rows, context_tokens)
        inside = saved.seen is None or saved.seen.holds(num_rows, prompt_tokens)
        for way in _ways(prompt_tokens, num_rows, chunks, groups):
            try:
                rows.append((saved.predict(way, prompt_tokens, beside), inside))
            except ConfigError as error:
                click.echo(f"left out {way.name}: {error}", err=True)
    title = f"{device}{f', {scale}' if scale else ''}, {model or 'its model'}"
    _console().print(predictions_table(title, rows))


@cost.command()
def paper() -> None:
    """Print the paper's figures on 2x H100 beside predictions of them."""
    from sglang_layered_lab.cost.tables import paper_tables

    console = _console()
    for table in paper_tables():
        console.print(table)


def _predictor(device: str, scale: str | None) -> SavedFit:
    """The roofline of a named device, or a fit from its file, carried to another device if asked."""
    if not device.startswith(FITTED):
        if device not in DEVICES:
            raise ConfigError(f"--device {device}: choose {', '.join(DEVICES)} or {FITTED}FILE")
        if scale:
            raise ConfigError("--scale carries a fit: give --device fitted:FILE")
        return SavedFit(StepModel(QWEN3_30B_A3B, PAPER_COVERAGE, DEVICES[device].costs()))
    saved = read_fit(Path(device.removeprefix(FITTED)))
    if scale is None:
        return saved
    ends = scale.split(":")
    if len(ends) != 2 or not set(ends) <= set(DEVICES):
        raise ConfigError(f"--scale {scale}: give FROM:TO, both of {', '.join(DEVICES)}")
    costs = scaled(saved.model.costs, DEVICES[ends[0]], DEVICES[ends[1]])
    return replace(saved, model=replace(saved.model, costs=costs))


def _with_choices(saved: SavedFit, name: str | None, coverage: str | None) -> SavedFit:
    """Another model or coverage than the fit's; coverage counted on another model is not taken over."""
    model = saved.model
    if name is not None:
        shape = named(name)
        experts = [(each.num_experts, each.num_experts_per_token) for each in (shape, model.shape)]
        kept = model.coverage if experts[0] == experts[1] else COVERAGES["uniform"]
        model = replace(model, shape=shape, coverage=kept)
    if coverage is not None:
        model = replace(model, coverage=COVERAGES[coverage])
    return replace(saved, model=model)


def _ways(
    prompt_tokens: int, decode_rows: int, chunks: tuple[int, ...], groups: tuple[int, ...]
) -> Iterator[Way]:
    """Every way to compare; a chunk that holds the whole prompt is left out."""
    yield Way("whole")
    for size in chunks:
        if size < prompt_tokens + decode_rows:
            yield Way("mixed", size)
    if decode_rows:
        for size in groups:
            yield Way("layered", size)


def _console() -> Console:
    return Console(width=None if Console().is_terminal else 140)
