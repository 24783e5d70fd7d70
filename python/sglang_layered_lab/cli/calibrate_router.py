"""The `calibrate-router` command: options, a line for each step and a table of what was measured."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from sglang_layered.errors import ModelRecipeError
from sglang_layered_lab.models.router_checkpoint import calibration_record, check_out, write_calibrated
from sglang_layered_lab.models.router_targets import DEFAULT_TARGETS, read_targets

if TYPE_CHECKING:
    from sglang_layered_lab.models.router_calibrate import Calibration
    from sglang_layered_lab.models.router_coverage import Coverage


@click.command("calibrate-router")
@click.argument("model_dir", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write.")
@click.option(
    "--targets",
    type=click.Path(path_type=Path),
    default=DEFAULT_TARGETS,
    help="JSON table.  [default: the paper's]",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the bias.")
@click.option(
    "--topics",
    "num_topics",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    help="Number of topics.",
)
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0, min_open=True),
    default=0.03,
    show_default=True,
    help="How far the worst row may be from its target.",
)
@click.option("--record", type=click.Path(path_type=Path), help="Write what was measured here too, as JSON.")
@click.option("--force", is_flag=True, help="Replace a model that this command made in --out.")
@click.option("--dummy", is_flag=True, help="MODEL_DIR has only a config, to serve with --load-format dummy.")
def calibrate_router(
    model_dir: Path, out: Path, targets: Path, record: Path | None, force: bool, dummy: bool, **fit: Any
) -> None:
    """Copy a model with random weights, its routers biased to touch as many experts as real text does.

    Random routers choose nearly uniformly: some tens of tokens touch every expert, which hides what layered
    prefill saves. The table shows the part of a layer's experts that tokens of one step touch: the target,
    before and after, measured by running the model, with the standard deviation between draws.

    With --dummy no model runs: rows are drawn as such a server will see them. Serve it with
    SGLANG_EXTERNAL_MODEL_PACKAGE=sglang_layered_lab.models.routed_dummy.
    """
    from sglang_layered_lab.models.router_calibrate import calibrate

    table = read_targets(targets)
    check_out(out, force=force)
    on_step = Console(stderr=True).print
    calibration = calibrate(model_dir, table, dummy=dummy, on_step=on_step, **fit)
    Console(width=None if Console().is_terminal else 100).print(coverage_table(calibration))
    if record is not None:
        _write_record(record, model_dir, calibration)
    write_calibrated(model_dir, out, calibration, force=force, dummy=dummy)
    click.echo(f"{out}: calibrated, {len(calibration.bias.topics)} topics")


def coverage_table(calibration: "Calibration") -> Table:
    """Lay out the measured coverage, in percent of a layer's experts."""
    table = Table("tokens of one step", title="experts touched, % of a layer's")
    for heading in ("target", "uniform", "calibrated", "difference"):
        table.add_column(heading, justify="right")
    for row in calibration.rows:
        table.add_row(
            str(row.target) + ("" if row.target.fit else " (not fitted)"),
            f"{100 * row.target.coverage:.1f}",
            _percent(row.uniform),
            _percent(row.calibrated),
            f"{100 * row.off:+.1f}",
        )
    return table


def _percent(coverage: "Coverage") -> str:
    return f"{100 * coverage.mean:.1f} ± {100 * coverage.std:.1f}"


def _write_record(path: Path, model_dir: Path, calibration: "Calibration") -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            json.dumps(calibration_record(model_dir, calibration), indent=2) + "\n", encoding="utf-8"
        )
    except OSError as error:
        raise ModelRecipeError(f"--record {path} cannot be written: {error}") from error
