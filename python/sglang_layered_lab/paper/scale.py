"""What the report says by the cost model: a fit to duels, chunks without padded attention, Figure 2."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.table import Table

from sglang_layered.errors import BenchError, ConfigError
from sglang_layered_lab.bench.sweep_result import SweepResult
from sglang_layered_lab.bench.tables import to_markdown
from sglang_layered_lab.cost.report import FitReport, fit_sweeps, write_fit
from sglang_layered_lab.cost.tables import fit_tables, paper_tables
from sglang_layered_lab.cost.ways import Beside, Way, predict_prompt

STUDY = "beside"
FIT = "cost-fit.json"
CONTEXT_TOKENS = 256  # that a decode row of that study sees, about
WAYS = (
    Way("whole"),
    *(Way("mixed", size) for size in (64, 256, 512)),
    *(Way("layered", groups) for groups in (2, 4, 8)),
)
EXACT_HEADER = ("way", "decodes", "TTFT ms, this attention", "exact", "worst gap ms, this attention", "exact")


def cost_text(results: Sequence[SweepResult], work: Path) -> str:
    """The section in Markdown; the fit itself goes into a file. Empty where the study was not run."""
    chosen = [result for result in results if result.name == STUDY]
    if not chosen:
        return ""
    try:
        fitted = fit_sweeps(chosen)
    except (BenchError, ConfigError) as error:
        return f"No model was fitted: {error}"
    write_fit(fitted, work / FIT)
    texts = map(markdown_of, fit_tables(fitted))
    return "\n\n".join([*texts, _exact_attention(fitted), markdown_of(next(paper_tables()))])


def markdown_of(table: Table) -> str:
    """A table for terminals, in Markdown."""
    columns = [[str(cell) for cell in column.cells] for column in table.columns]
    text = to_markdown([str(column.header) for column in table.columns], list(zip(*columns, strict=True)))
    return f"**{table.title}**\n\n{text}" if table.title else text


def _exact_attention(saved: FitReport) -> str:
    """TTFT and worst gap of a prompt beside decodes, as the machine has it and with exact attention."""
    tokens = saved.prompt_tokens[1]
    models = (saved.model, replace(saved.model, is_padded=False))
    rows = []
    for num_rows in saved.decode_rows:
        for way in WAYS:
            beside = Beside(num_rows, CONTEXT_TOKENS)
            seen = [predict_prompt(model, way, tokens, beside, saved.waits) for model in models]
            times_s = (*(each.ttft_s for each in seen), *(each.worst_gap_s or 0.0 for each in seen))
            rows.append((way.name, str(num_rows), *(f"{1e3 * time_s:.0f}" for time_s in times_s)))
    return (
        f"**A prompt of {tokens} tokens, predicted, with the CPU's attention and with an exact one**\n\n"
        "SGLang's attention on a CPU computes the cached rows of a chunk again, which a GPU's does not: part"
        " of what chunks lose above is due to that. Whole prompts and layer groups are not touched by it.\n\n"
        f"{to_markdown(EXACT_HEADER, rows)}"
    )
