"""`sglang-layered cost`: fit step times to sweeps, and predict with them. Measures nothing."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console

from sglang_layered.cli.groups import WholeGroup
from sglang_layered.errors import ConfigError
from sglang_layered_lab.cost.coverage import COVERAGES
from sglang_layered_lab.cost.roofline import DEVICES, Roofline
from sglang_layered_lab.cost.sizes import MODELS, named
from sglang_layered_lab.cost.ways import StepModel, Way

if TYPE_CHECKING:
    from sglang_layered_lab.cost.report import FitReport

FITTED = "fitted:"
MODEL_HELP = f"{', '.join(MODELS)}, or the path of a config.json."


@click.group(cls=WholeGroup)
def cost() -> None:
    """Fit step times to records, and predict prompts by them."""


@cost.command()
@click.argument("folders", metavar="SWEEP...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Write the fit here, for predict.")
@click.option("--model", help=f"{MODEL_HELP}  [default: the records' model]")
def fit(folders: tuple[Path, ...], out: Path | None, model: str | None) -> None:
    """Fit the scheduler's step-time model to the duels in folders of bench sweep.

    A duel is a cell whose prompts come one by one beside streams that decode. Errors of arms, and of
    numbers of decode rows, are those of fits that have not seen them.
    """
    from sglang_layered.files import check_output
    from sglang_layered_lab.bench.sweep_result import SweepResult
    from sglang_layered_lab.cost.report import fit_sweeps, write_fit
    from sglang_layered_lab.cost.tables import fit_tables

    if out:
        check_output(out)
    report = fit_sweeps([SweepResult.read(folder) for folder in folders], named(model) if model else None)
    console = _console()
    console.print(*fit_tables(report), sep="\n")
    waits = report.waits
    console.print(
        f"a prompt waits for {waits.before_steps:.2f} decode steps before its first one (median), and"
        f" {1e3 * waits.request_s:.1f} ms besides"
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
@click.option("--model", help=f"{MODEL_HELP}  [default: qwen3-30b-a3b; a fit has its own]")
@click.option("--coverage", type=click.Choice(list(COVERAGES)), help="Default: paper; a fit has its own.")
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
    from sglang_layered_lab.cost.ways import Beside, predict_prompt

    saved, used = _predictor(device, scale, model, coverage)
    rows = []
    for num_rows in decode_rows:
        beside = Beside(num_rows, context_tokens)
        inside = saved is None or saved.has_seen(num_rows, prompt_tokens)
        for way in _ways(prompt_tokens, num_rows, chunks, groups):
            try:
                waits = saved.waits if saved else None
                rows.append((predict_prompt(used, way, prompt_tokens, beside, waits), inside))
            except ConfigError as error:
                click.echo(f"left out {way.name}: {error}", err=True)
    title = f"{device}{f', {scale}' if scale else ''}, {model or 'its model'}"
    _console().print(predictions_table(title, rows))


@cost.command()
def paper() -> None:
    """Print the paper's figures on 2x H100 beside predictions of them."""
    from sglang_layered_lab.cost.tables import paper_tables

    _console().print(*paper_tables(), sep="\n")


def _predictor(
    device: str, scale: str | None, model: str | None, coverage: str | None
) -> "tuple[FitReport | None, StepModel]":
    """The roofline of a named device, or a fit from its file, carried to another device if asked."""
    if not device.startswith(FITTED):
        if device not in DEVICES:
            raise ConfigError(f"--device {device}: choose {', '.join(DEVICES)} or {FITTED}FILE")
        if scale:
            raise ConfigError("--scale carries a fit: give --device fitted:FILE")
        shape = named(model or "qwen3-30b-a3b")
        return None, Roofline(shape, COVERAGES[coverage or "paper"], DEVICES[device])
    from sglang_layered_lab.cost.report import read_fit

    given = "--model" if model else "--coverage" if coverage else None
    if given:
        raise ConfigError(
            f"{given}: a fit is of one model with uniform routing; leave it out, or give --device"
            f" {' or '.join(DEVICES)}"
        )
    saved = read_fit(Path(device.removeprefix(FITTED)))
    if scale is None:
        return saved, saved.model
    ends = scale.split(":")
    if len(ends) != 2 or not set(ends) <= set(DEVICES):
        raise ConfigError(f"--scale {scale}: give FROM:TO, both of {', '.join(DEVICES)}")
    return saved, replace(saved.model, carried=(DEVICES[ends[0]], DEVICES[ends[1]]))


def _ways(
    prompt_tokens: int, decode_rows: int, chunks: tuple[int, ...], groups: tuple[int, ...]
) -> Iterator[Way]:
    """Every way to compare; a chunk that holds the whole prompt is left out."""
    yield Way("whole")
    yield from (Way("mixed", size) for size in chunks if size < prompt_tokens + decode_rows)
    if decode_rows:
        yield from (Way("layered", size) for size in groups)


def _console() -> Console:
    return Console(width=None if Console().is_terminal else 140)
