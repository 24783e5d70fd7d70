"""Fits, predictions and the paper's figures as tables for a terminal. What is predicted says so."""

from collections.abc import Iterable, Iterator, Sequence

from rich.table import Table

from sglang_layered_lab.cost.paper import P99_GAP_S, PAPER_BESIDE, PROMPT_TOKENS, ROOFLINE, fitted, run_times
from sglang_layered_lab.cost.report import FitReport
from sglang_layered_lab.cost.ways import Prediction, predict_prompt

MEANINGS = (  # of the scheduler's coefficients, in their order
    "a step",
    "all experts once (all weights of a dense model)",
    "a decode row",
    "a token of a decode row's context",
    "a prompt row, all layers",
    "a token that a prompt row sees, all layers",
    "prompt rows, all layers",
    "the same in a forward of their own",
)


def fit_tables(report: FitReport) -> Iterator[Table]:
    """Coefficients, errors, and every configuration as a fit predicts it that has not seen its arm."""
    coefficients = [f"{1e6 * value:.4g}" for value in report.model.times.coefficients]
    rows: list[Sequence[str]] = list(zip(MEANINGS, coefficients, strict=True))
    yield _table("coefficients of the scheduler's step-time model", ("of", "us"), rows)
    rows = []
    for name, errors in report.errors.items():
        what = name.replace("_", " ")
        title = what if name == "training" else f"held out: {what} by {what}"
        sizes = [f"{100 * size:.1f} %" for size in (errors.median, errors.p90, errors.worst)]
        rows.append((f"{title} ({errors.num})", *sizes, errors.worst_of))
    yield _table("relative error of single times", ("times", "median", "p90", "worst", "worst of"), rows)
    rows = [
        (
            *(str(each[name]) for name in ("arm", "decode_rows", "prompt_tokens")),
            *compared(each["prompt_s"], each["predicted_prompt_s"]),
            *compared(each["worst_s"], each["predicted_worst_s"]),
        )
        for each in report.configurations
    ]
    columns = ("prompt ms", "predicted", "error", "worst wait ms", "predicted", "error")
    title = "measured, and predicted by a fit without the arm"
    yield _table(title, ("arm", "decodes", "tokens", *columns), rows)


def compared(seen_s: float, *predicted_s: float) -> list[str]:
    """Milliseconds seen, then of each prediction its milliseconds and by how much it is off."""
    pairs = [(f"{1e3 * each:.0f}", f"{100 * (each / seen_s - 1):+.1f} %") for each in predicted_s]
    return [f"{1e3 * seen_s:.0f}", *(cell for pair in pairs for cell in pair)]


def predictions_table(title: str, predictions: Iterable[tuple[Prediction, bool]]) -> Table:
    """Predictions with whether the fit had seen such loads; `title` names device and model."""
    rows = []
    for each, inside in predictions:
        gap = "-" if each.worst_gap_s is None else f"{1e3 * each.worst_gap_s:.1f}"
        times = (f"{1e3 * each.ttft_s:.1f}", gap, f"{1e3 * each.worst_step_s:.1f}")
        counts = (each.prompt_tokens, each.beside.decode_rows, each.num_steps)
        name = each.way.name if inside else f"{each.way.name} *"
        rows.append((name, *map(str, counts), *times, f"{each.expert_bytes / 1e9:.1f}"))
    header = ("way", "tokens", "decodes", "steps", "TTFT ms", "worst TBT ms", "worst step ms", "expert GB")
    table = _table(f"predicted, not measured: {title}", header, rows)
    if not all(inside for _, inside in predictions):
        table.caption = "* outside of what the fit has seen"
    return table


def paper_tables() -> Iterator[Table]:
    """The paper's run times and gaps beside predictions of them."""
    header = ("chunk", "paper", "predicted: roofline", "error", "predicted: fit to the other chunks", "error")
    rows = [(str(chunk), *compared(*times_s)) for chunk, times_s in run_times().items()]
    yield _table("8192-token prompt, Qwen3-30B-A3B, 2x H100: run time ms", header, rows)
    models = (ROOFLINE, fitted())
    gap_rows = []
    for way, paper_s in P99_GAP_S.items():
        seen = [predict_prompt(model, way, PROMPT_TOKENS, PAPER_BESIDE) for model in models]
        gaps = [f"{1e3 * each:.1f}" for each in (paper_s, *(each.worst_step_s for each in seen))]
        gap_rows.append((way.name, *gaps, f"{1e3 * seen[1].ttft_s:.0f}"))
    beside = f"worst TBT ms beside {PAPER_BESIDE.decode_rows} decodes"
    columns = ("way", "paper, p99", "predicted: roofline", "predicted: fit", "TTFT predicted: fit")
    yield _table(f"{beside} (paper: p99 under load, not the same thing)", columns, gap_rows)


def _table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    table = Table(title=title, title_justify="left", caption_justify="left")
    for index, name in enumerate(header):
        table.add_column(name, justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*row)
    return table
