"""Fits, predictions and the paper's figures as tables for a terminal. What is predicted says so."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from rich.table import Table

from sglang_layered_lab.cost.costs import StepCosts
from sglang_layered_lab.cost.fit import Errors
from sglang_layered_lab.cost.model import StepModel
from sglang_layered_lab.cost.paper import P99_GAP_S, PROMPT_TOKENS, compare_run_times, fitted, roofline
from sglang_layered_lab.cost.predict import Prediction, predict_prompt
from sglang_layered_lab.cost.report import Configuration, FitReport
from sglang_layered_lab.cost.ways import Beside

PAPER_DECODE_ROWS = 16  # about what ran beside a prompt in the paper's runs
PAPER_CONTEXT_TOKENS = 2048

Units = tuple[str, str, str, Callable[[float], float]]  # coefficient, meaning, unit, seconds to unit
UNITS: tuple[Units, ...] = (
    ("byte", "reading weights and KV", "GB/s", lambda seconds: 1e-9 / seconds),
    ("flop", "products of rows and weights", "GFLOP/s", lambda seconds: 1e-9 / seconds),
    ("attention_flop", "attention", "GFLOP/s", lambda seconds: 1e-9 / seconds),
    ("prompt_layer_call", "a layer with prompt rows", "us", lambda seconds: 1e6 * seconds),
    ("decode_layer_call", "a layer with decode rows alone", "us", lambda seconds: 1e6 * seconds),
    ("sequence_call", "a sequence's attention in a layer", "us", lambda seconds: 1e6 * seconds),
    ("step", "a step", "ms", lambda seconds: 1e3 * seconds),
    ("request", "a request besides its steps", "ms", lambda seconds: 1e3 * seconds),
    ("link_byte", "summing over devices", "GB/s", lambda seconds: 1e-9 / seconds),
)


def fit_tables(report: FitReport) -> Iterator[Table]:
    """Coefficients, errors, and every configuration as a fit predicts it that has not seen its arm."""
    yield costs_table(report.fit.model.costs)
    yield _errors_table(report)
    yield _configurations_table(report.configurations)


def costs_table(costs: StepCosts) -> Table:
    """The coefficients in units that one knows."""
    table = _table(f"coefficients, law {costs.law}", "of", "value", "unit")
    for name, meaning, unit, to_unit in UNITS:
        seconds = getattr(costs, name)
        table.add_row(
            meaning, f"{to_unit(seconds):.4g}" if seconds else "no cost seen", unit if seconds else ""
        )
    return table


def _errors_table(report: FitReport) -> Table:
    table = _table("relative error of single times", "times", "median", "p90", "worst", "worst of")
    for name, errors in report.errors.items():
        title = "training" if name == "training" else f"held out: {name} by {name}"
        _add_errors(table, title, errors)
    for name, errors in report.other_errors.items():
        if name == "arm":
            _add_errors(table, "held out: arm by arm, the other law", errors)
    return table


def _add_errors(table: Table, title: str, errors: Errors) -> None:
    sizes = [f"{100 * each:.1f} %" for each in (errors.median, errors.p90, errors.worst)]
    table.add_row(f"{title} ({errors.num})", *sizes, errors.worst_of)


def _configurations_table(configurations: Iterable[Configuration]) -> Table:
    columns = ("prompt ms", "predicted", "error", "worst wait ms", "predicted", "error")
    table = _table("measured, and predicted by a fit without the arm", "arm", "decodes", "tokens", *columns)
    for each in configurations:
        cells = [str(each.decode_rows), str(each.prompt_tokens)]
        for seen_s, predicted_s in (
            (each.prompt_s, each.predicted_prompt_s),
            (each.worst_s, each.predicted_worst_s),
        ):
            cells += [f"{1e3 * seen_s:.0f}", f"{1e3 * predicted_s:.0f}", _off(predicted_s, seen_s)]
        table.add_row(each.arm, *cells)
    return table


def predictions_table(title: str, predictions: Iterable[tuple[Prediction, bool]]) -> Table:
    """Predictions with whether the fit had seen such loads; `title` names device and model."""
    columns = ("steps", "TTFT ms", "worst TBT ms", "worst step ms", "expert GB")
    table = _table(f"predicted, not measured: {title}", "way", "tokens", "decodes", *columns)
    marked = False
    for each, inside in predictions:
        gap = "-" if each.worst_gap_s is None else f"{1e3 * each.worst_gap_s:.1f}"
        times = (f"{1e3 * each.ttft_s:.1f}", gap, f"{1e3 * each.worst_step_s:.1f}")
        name = each.way.name if inside else f"{each.way.name} *"
        marked |= not inside
        row = (str(each.prompt_tokens), str(each.beside.decode_rows), str(each.num_steps), *times)
        table.add_row(name, *row, f"{each.expert_bytes / 1e9:.1f}")
    if marked:
        table.caption = "* outside of what the fit has seen"
    return table


def paper_tables() -> Iterator[Table]:
    """The paper's run times and gaps beside predictions of them."""
    table = _table(
        "8192-token prompt, Qwen3-30B-A3B, 2x H100: run time ms",
        *("chunk", "paper", "predicted: roofline", "error", "predicted: fit to the other chunks", "error"),
    )
    for row in compare_run_times():
        cells = [f"{1e3 * row.paper_s:.0f}"]
        for predicted_s in (row.roofline_s, row.held_out_s):
            cells += [f"{1e3 * predicted_s:.0f}", _off(predicted_s, row.paper_s)]
        table.add_row(str(row.chunk_tokens), *cells)
    yield table
    yield _gaps_table(roofline(), fitted())


def _gaps_table(roof: StepModel, fit: StepModel) -> Table:
    beside = Beside(PAPER_DECODE_ROWS, PAPER_CONTEXT_TOKENS)
    table = _table(
        f"worst TBT ms beside {beside.decode_rows} decodes (paper: p99 under load, not the same thing)",
        *("way", "paper, p99", "predicted: roofline", "predicted: fit", "TTFT predicted: fit"),
    )
    for way, paper_s in P99_GAP_S.items():
        low, high = (predict_prompt(model, way, PROMPT_TOKENS, beside) for model in (roof, fit))
        gaps = [f"{1e3 * each.worst_step_s:.1f}" for each in (low, high)]
        table.add_row(way.name, f"{1e3 * paper_s:.1f}", *gaps, f"{1e3 * high.ttft_s:.0f}")
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", caption_justify="left")
    for index, name in enumerate(columns):
        table.add_column(name, justify="left" if index == 0 else "right")
    return table


def _off(predicted_s: float, seen_s: float) -> str:
    return f"{100 * (predicted_s / seen_s - 1):+.1f} %"
